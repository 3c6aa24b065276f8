"""The repository keeps its own promises: what documents name exists, and nothing ties it to one machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.kubectl.main import COMMANDS as PLUGIN_COMMANDS
from cli.kubectl.main import load
from cli.main import COMMANDS
from controller.api import parse_run

ROOT = Path(__file__).parents[1]
PACKAGES = ("contract", "controller", "worker", "cli")


def run(*command: str) -> str:
    """Standard output of a command run in the repository's root."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout


def repository_files() -> list[Path]:
    """All files that are, or could be, committed."""
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({ROOT / name for name in names if name and (ROOT / name).is_file()})


FILES = repository_files()
DOCUMENTS = [path for path in FILES if path.suffix == ".md"]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Put together from pieces, so that this file does not contain what it forbids.
FORBIDDEN = {
    "an absolute path of one machine": r"(?<![\w.~-])/(?:work|root|home|Users)/",
    "the host of a package registry": "|".join(
        re.escape(".".join(parts))
        for parts in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("registry", "npmjs", "org"),
            ("deb", "debian", "org"),
            ("download", "pytorch", "org"),
        )
    ),
    "a folder outside the repository": re.escape("../" + "shared"),
}


@pytest.mark.parametrize(("what", "pattern"), FORBIDDEN.items(), ids=FORBIDDEN)
def test_nothing_ties_the_repository_to_one_machine(what: str, pattern: str) -> None:
    """No file names a path, a registry or a folder that another checkout does not have."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in FILES
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if (match := re.search(pattern, line))
    ]

    assert len(FILES) > 50
    assert found == [], what


@pytest.mark.parametrize("text", ["a /" + "root/x", 'open("/' + 'home/me/y")', "file:///" + "work/z"])
def test_machine_paths_are_recognised(text: str) -> None:
    """The pattern finds what it is meant to find."""
    assert re.search(FORBIDDEN["an absolute path of one machine"], text)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    """Each example is one resource that the API accepts, named like its file; an input that is a file ships with it."""
    (resource,) = yaml.safe_load_all(path.read_text())

    parsed = parse_run(resource)

    assert parsed.name == path.stem
    assert all("://" in uri or (ROOT / uri).is_file() for uri in parsed.spec.input.uris)


def test_there_are_examples() -> None:
    """The test above is not vacuous."""
    assert {path.stem for path in EXAMPLES} >= {"quickstart", "esm2-8m-random"}


def test_the_example_proteins_are_as_described() -> None:
    """Their number, lengths and licence are what the file beside them says."""
    sequences = [
        "".join(entry.split("\n")[1:])
        for entry in (ROOT / "examples/data/proteins.fasta").read_text().removeprefix(">").split("\n>")
    ]
    lengths = sorted(map(len, sequences))
    description = (ROOT / "examples/data/README.md").read_text()

    assert f"{len(lengths)} reviewed entries" in description
    assert f"{lengths[0]} to {lengths[-1]:,} residues" in description
    assert f"({sum(length > 1022 for length in lengths)} above 1,022), {sum(lengths):,} residues" in description
    assert "Creative Commons Attribution 4.0" in description


def makefile_targets() -> set[str]:
    """Names after .PHONY."""
    (names,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(names.split())


def test_make_help_lists_every_target() -> None:
    """`make help` has a line with a meaning for each target, and for nothing else."""
    lines = run("make", "--no-print-directory", "help").splitlines()

    assert {line.split()[1] for line in lines} == makefile_targets()
    assert all(len(line.split()) > 3 for line in lines)


def code_of(document: Path) -> str:
    """All that stands in code blocks or backticks."""
    return "\n".join(re.findall(r"```.*?```|`[^`]+`", document.read_text(), re.DOTALL))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_what_exists(document: Path) -> None:
    """Every make target, command, relative link and test named in a document is there."""
    code = code_of(document)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    tests = re.findall(r"`(tests/[\w./]*)`", document.read_text())

    assert set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", code, re.MULTILINE)) <= makefile_targets()
    assert set(re.findall(r"(?:bin/|`)inferencerun ([a-z]+)", code)) <= set(COMMANDS)
    assert set(re.findall(r"kubectl inferencerun ([a-z]+)", code)) <= set(PLUGIN_COMMANDS)
    assert [link for link in links if not (document.parent / link).exists()] == []
    assert [test for test in tests if not (ROOT / test).exists()] == []


def test_the_readme_shows_the_two_commands_ci_runs() -> None:
    """A reader runs what CI runs."""
    script = (ROOT / ".ci/run").read_text().splitlines()

    for command in ("make demo", "make test"):
        assert f"\n{command} " in (ROOT / "README.md").read_text()
        assert command in script


def test_every_command_has_a_module_and_a_line_in_the_readme() -> None:
    """No command is listed that cannot be loaded, none is left unexplained."""
    readme = (ROOT / "README.md").read_text()

    assert [name for name in COMMANDS if not (ROOT / "cli" / f"{name}.py").is_file()] == []
    assert [name for name in COMMANDS if f"`{name}`" not in readme] == []


def test_every_command_of_the_plug_in_has_a_chapter() -> None:
    """docs/kubectl-plugin.md explains each, and each can be loaded."""
    text = (ROOT / "docs/kubectl-plugin.md").read_text()

    assert [name for name in PLUGIN_COMMANDS if load(name).name != name] == []
    assert [name for name in PLUGIN_COMMANDS if f"\n## {name}" not in text and f"`{name}`" not in text] == []


def test_the_architecture_has_a_place_for_every_module() -> None:
    """docs/architecture.md says what each module is for, and names none that is gone (folders stand for their files)."""
    text = (ROOT / "docs/architecture.md").read_text()
    chapters = {
        package: re.findall(r"`((?:[\w]+/)*\w*(?:\.py|/))`", chapter)
        for package in PACKAGES
        for chapter in [text.split(f"\n### {package}/", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]]
    }
    commands = {f"{name}.py" for name in COMMANDS}

    for package, named in chapters.items():
        root = ROOT / package
        modules = {str(path.relative_to(root)) for path in root.rglob("*.py") if path.name != "__init__.py"}
        known = set(named) | (commands if package == "cli" else set())
        homeless = {name for name in modules if not ({name, f"{name.split('/')[0]}/"} & known)}
        assert homeless == set(), f"add a row to docs/architecture.md, {package}/"
        assert {name for name in named if not (root / name).exists()} == set(), f"gone from {package}/"


def test_the_licence_is_there() -> None:
    """The whole Apache-2.0 text, as pyproject.toml says."""
    text = (ROOT / "LICENSE").read_text()

    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


CONTRACTS = [
    contract
    for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
    if contract["type"] == "forbidden" and "torch" in contract["forbidden_modules"]
]


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract["name"])
def test_pure_modules_load_no_client_and_no_torch(contract: dict[str, Any]) -> None:
    """Importing the deciders in a fresh interpreter loads nothing that they are barred from."""
    program = "import importlib, json, sys; [importlib.import_module(name) for name in json.loads(sys.argv[1])]; "
    program += "print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(run(sys.executable, "-c", program, json.dumps(contract["source_modules"]))))

    assert set(contract["source_modules"]) <= loaded
    assert loaded & set(contract["forbidden_modules"]) == set()


def test_the_coverage_gate_covers_the_pure_modules() -> None:
    """Every module that the linter holds to be pure is among those whose coverage `make test` enforces."""
    (listed,) = re.findall(r"--include='([^']+)'", run("make", "--dry-run", "--always-make", "test"))
    patterns = listed.split(",")
    pure = {f"{name.replace('.', '/')}.py" for contract in CONTRACTS for name in contract["source_modules"]}

    assert len(CONTRACTS) >= 3
    assert {path for path in pure if not any(Path(path).match(pattern) for pattern in patterns)} == set()
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []
