"""Every block of YAML, JSON, shell and Python in the documents is exercised, or says above it why not.

YAML goes through the parsers that will read it; commands are parsed by the real programs, and those that need nothing but
this machine are run, in order, each document in a directory of its own. A block that cannot be exercised here is marked:

    <!-- not run: needs a Google Cloud project -->
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.main import COMMANDS
from controller.api import parse_run
from tests.docs.commands import CommandLine, command_lines, problem
from tests.docs.documents import BLOCKS, DOCUMENTS, ROOT, SHELL, Block, Document

KNOWN = SHELL | {"yaml", "json", "python", "dockerfile", "text", ""}
SPEC = {"input": {"uris": ["in.fasta"]}, "output": {"uri": "out"}, "model": {"name": "kmer"}}
SPEC_FIELDS = {"input", "output", "model", "workers", "checkpoint", "failurePolicy", "resume", "suspend"}
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "charts/inferencerun-operator/values.yaml").read_text())
OTHERS_DO = {
    "CONTRIBUTING.md": ".ci/run",
    "docs/testing-cluster.md": "tests/cluster",
    "docs/kubectl-plugin.md": "tests/cli/kubectl/test_docs.py",
    "docs/worker-pods.md": "tests/controller/test_pod_template.py",
    "charts/inferencerun-operator/README.md": "tests/chart",
}
"""Documents whose shell blocks are exercised elsewhere."""
COMMAND_LINES = tuple(command_lines())


def of_language(*languages: str) -> list[Block]:
    """Blocks in any of these."""
    return [block for block in BLOCKS if block.language in languages]


def test_what_is_exercised_elsewhere_has_a_place() -> None:
    """No document is passed over for a test that is gone."""
    assert [path for pair in OTHERS_DO.items() for path in pair if not (ROOT / path).exists()] == []


def test_blocks_are_of_known_kinds() -> None:
    """A language that no check looks at would be a hole in all of them."""
    assert {block.language for block in BLOCKS} <= KNOWN
    assert len(BLOCKS) > 40


@pytest.mark.parametrize("block", of_language("yaml"), ids=lambda block: block.name)
def test_yaml_is_what_its_reader_takes(block: Block) -> None:
    """Runs and parts of runs go through the controller's parser, values are those of the chart."""
    found = [item for item in yaml.safe_load_all(block.text) if item is not None]

    assert found
    for item in found:
        if block.reason is None:
            exercise(item)


def exercise(item: dict[str, Any]) -> None:
    """Have the reader of a YAML document read it; fails when there is none."""
    if item.get("kind") == "InferenceRun":
        parse_run(item)
    elif set(item) == {"spec"} or set(item) <= SPEC_FIELDS:
        part = item.get("spec", item)
        spec = {name: {**SPEC.get(name, {}), **part[name]} if name in SPEC else part[name] for name in part}
        parse_run(
            {
                "apiVersion": "inferencerun.dev/v1alpha1",
                "kind": "InferenceRun",
                "metadata": {"name": "fragment"},
                "spec": {**SPEC, **spec},
            }
        )
    elif set(item) <= set(VALUES):
        check_values(item, VALUES, "")
    else:
        raise AssertionError(f"nobody reads {sorted(item)}: mark the block 'not run', with the reason")


def check_values(given: dict[str, Any], known: dict[str, Any], path: str) -> None:
    """Each value is one of the chart's."""
    for name, value in given.items():
        assert name in known, f"values.yaml has no {path}{name}"
        if isinstance(value, dict) and isinstance(known[name], dict) and known[name]:
            check_values(value, known[name], f"{path}{name}.")


@pytest.mark.parametrize(
    "text", [pytest.param(text, id=block.name) for block in BLOCKS for text in block.here_documents]
)
def test_yaml_within_a_command_is_what_its_reader_takes(text: str) -> None:
    """The input of `kubectl apply` and `helm install` is read, though the commands themselves are not run."""
    exercise(yaml.safe_load(text))


def test_what_a_command_is_given_is_no_command() -> None:
    """A here-document is taken out of its block's commands, and kept for its reader."""
    text = "kubectl apply --filename - <<'END'\nkind: Pod # or two\nEND\nkubectl get pods\n"
    block = Block(document=ROOT / "README.md", line=1, language="sh", text=text, reason=None)

    assert block.commands == ("kubectl apply --filename - <<'END'", "kubectl get pods")
    assert block.here_documents == ("kind: Pod # or two\n",)


@pytest.mark.parametrize("block", of_language("json"), ids=lambda block: block.name)
def test_json_is_json(block: Block) -> None:
    """Policies and the like at least parse."""
    assert json.loads(block.text)


@pytest.mark.parametrize("block", of_language("python"), ids=lambda block: block.name)
def test_python_compiles(block: Block) -> None:
    """Also what is not run."""
    compile(block.text, block.name, "exec")


@pytest.mark.parametrize("line", COMMAND_LINES, ids=str)
def test_every_command_line_of_ours_is_one(line: CommandLine) -> None:
    """Commands, options and arguments are those of the program, in blocks and in running text."""
    assert problem(line) is None


def test_there_are_command_lines() -> None:
    """The test above looks at something, and a wrong one is found."""
    assert len(COMMAND_LINES) > 40
    assert problem(CommandLine("here", "inferencerun", "status")) is None
    assert problem(CommandLine("here", "inferencerun", "stats x")) == "there is no command stats"
    assert problem(CommandLine("here", "inferencerun", "export out dest --nonsense")) is not None
    assert problem(CommandLine("here", "kubectl inferencerun", "scale NAME")) is not None


RUN = [
    document
    for document in DOCUMENTS
    if str(document.path.relative_to(ROOT)) not in OTHERS_DO
    and any((block.commands or block.language == "python") and block.reason is None for block in document.blocks)
]


@pytest.mark.parametrize("document", RUN, ids=lambda document: str(document.path.relative_to(ROOT)))
@pytest.mark.timeout(420)
def test_what_is_not_marked_runs(document: Document, tmp_path: Path) -> None:
    """The document's commands and programs, in their order, in a directory that has the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    program = ""
    done = 0
    for block in document.blocks:
        if block.reason is not None:
            continue
        for line in block.commands:
            words = line.replace(".venv/bin/", "").split()
            if words[0] == "make":
                assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), line
                continue
            assert words[0] == "inferencerun", (
                f"{block.name}: {line!r} is not run here: mark the block, with the reason"
            )
            assert words[1] in COMMANDS
            call([sys.executable, "-m", "cli", *words[1:]], tmp_path, environment, line)
            done += 1
        if block.language == "python":
            program += block.text + "\n"
            done += 1
    if program:  # at the end: it may read whatever the commands made
        call([sys.executable, "-c", program], tmp_path, environment, str(document.path))

    assert done or any(line.startswith("make ") for block in document.blocks for line in block.commands)


def call(command: list[str], directory: Path, environment: dict[str, str], what: str) -> None:
    """Run a command; fails with its words when it does."""
    ended = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, f"{what}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
