"""Tests of the command itself: fast help, exit codes, and what it prints where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.main import COMMANDS, main
from cli.present import print_pairs, print_table
from cli.texts import duration_text, printable, size_text
from tests.cli.outputs import make_output, run


@pytest.mark.parametrize("name", COMMANDS.keys() - {"completion"})
def test_each_command_of_the_table_loads(name: str) -> None:
    """Its module has a command of that name, which takes --json."""
    command = main.get_command(click.Context(main), name)

    assert command is not None
    assert command.name == name
    assert "--json" in CliRunner().invoke(main, [name, "--help"]).output


def test_help_loads_no_heavy_package() -> None:
    """Help is a matter of milliseconds: neither torch nor boto3 nor numpy is imported for it."""
    code = (
        "import sys; from click.testing import CliRunner; from cli.main import main;"
        "print(CliRunner().invoke(main, ['--help']).exit_code,"
        "      *sorted({'torch', 'numpy', 'boto3', 'rich'} & set(sys.modules)))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.split() == ["0"]


def test_status_loads_no_torch(tmp_path: Path) -> None:
    """Looking at a run is cheap."""
    made = make_output(tmp_path)
    code = (
        "import sys; from click.testing import CliRunner; from cli.main import main;"
        "print(CliRunner().invoke(main, sys.argv[1:]).exit_code, *sorted({'torch', 'numpy'} & set(sys.modules)))"
    )

    result = subprocess.run(
        [sys.executable, "-c", code, "status", made.uri], capture_output=True, text=True, check=True
    )

    assert result.stdout.split() == ["0"]


def test_completion_loads_no_heavy_package() -> None:
    """A key press must not cost an import of torch: names come from the table."""
    code = (
        "import sys; from click.shell_completion import ShellComplete; from cli.main import main;"
        "found = ShellComplete(main, {}, 'inferencerun', '').get_completions([], 'ver');"
        "print(*[item.value for item in found], *sorted({'torch', 'numpy', 'boto3', 'rich'} & set(sys.modules)))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.split() == ["verify"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(shell: str) -> None:
    """It calls the program back, with click's variable."""
    result = run("completion", shell)

    assert result.exit_code == 0
    assert f"_INFERENCERUN_COMPLETE={shell}_complete" in result.stdout


def test_an_unknown_command_is_wrong_usage() -> None:
    """Exit code 2, and the name."""
    result = run("statsu")

    assert result.exit_code == 2
    assert "statsu" in result.stderr


def test_a_store_that_cannot_be_is_an_error_with_its_code() -> None:
    """Errors go to standard error with the exit code of the table."""
    result = run("status", "ftp://host/x", "--json")

    assert (result.exit_code, result.stdout) == (64, "")
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "-"), ("plain é", "plain é"), ("a\x1b[2J", "a\\x1b[2J"), ("two\nlines", "two\\nlines"), (7, "7")],
)
def test_nothing_printed_acts_on_the_terminal(value: object, expected: str) -> None:
    """Control characters show as escapes."""
    assert printable(value) == expected


def test_tables_without_a_terminal_are_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns line up, and no line ends in blanks."""
    print_table(("A", "LONGER"), [("wide cell", 1), ("x", None)], empty="nothing")

    assert capsys.readouterr().out == "A          LONGER\nwide cell  1\nx          -\n"


def test_tables_on_a_terminal_take_markup_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An id such as [red] is shown, not obeyed."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    print_table(("ID",), [("[red]x[/red]",)], empty="nothing")

    assert "[red]x[/red]" in capsys.readouterr().out


def test_pairs_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """Values begin in one column."""
    print_pairs([("a", 1), ("longer", "x")])

    assert capsys.readouterr().out == "a       1\nlonger  x\n"


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (64 << 20, "64.0 MiB"),
        (3 << 50, "3.0 PiB"),
        (3 << 60, "3072.0 PiB"),
    ],
)
def test_sizes_are_readable(num_bytes: int, expected: str) -> None:
    """In binary units."""
    assert size_text(num_bytes) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, "-"), (0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (3720, "1 h 02 min"), (90_000, "25 h 00 min")],
)
def test_durations_are_readable(seconds: float | None, expected: str) -> None:
    """In the two largest units."""
    assert duration_text(seconds) == expected
