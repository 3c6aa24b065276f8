"""Command lines of documents, parsed by the real programs without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click

from cli.kubectl.main import main as plug_in
from cli.main import main as program
from tests.docs.documents import DOCUMENTS

PROGRAMS: dict[str, click.Group] = {
    "inferencerun": program,
    "kubectl inferencerun": plug_in,
    "kubectl-inferencerun": plug_in,
}
_START = re.compile(r"^(?:\S*/)?(kubectl inferencerun|kubectl-inferencerun|inferencerun)(\s.*)?$")


@dataclass(frozen=True)
class CommandLine:
    """One call of a program of ours, and where it stands."""

    where: str
    program: str
    arguments: str

    def __str__(self) -> str:
        return f"{self.where}: {self.program} {self.arguments}"


def command_lines() -> Iterator[CommandLine]:
    """Every call in shell blocks, and every one in backticks that has arguments."""
    for document in DOCUMENTS:
        found: list[tuple[str, str]] = [(block.name, line) for block in document.blocks for line in block.commands]
        spans = re.findall(r"`([^`\n]+)`", document.prose)
        found += [(document.path.name, span) for span in spans]
        for where, line in found:
            called = _START.match(re.split(r"\s[|>&;]", line, maxsplit=1)[0].strip())
            if called:
                yield CommandLine(where, called[1], (called[2] or "").strip())


def problem(line: CommandLine) -> str | None:
    """What the program says against the command line, or None."""
    group = PROGRAMS[line.program]
    words = shlex.split(re.sub(r"\[[^\]]*\]|…|\.\.\.", "", line.arguments))
    if not words or words[0].startswith("-") or words[0] == "COMMAND":
        return None
    context = click.Context(group)
    if words[0] not in group.list_commands(context):
        return f"there is no command {words[0]}"
    command = group.get_command(context, words[0])
    assert command is not None
    if len(words) == 1:
        return None  # the name alone, in running text
    try:
        with _any_path(command):
            command.make_context(words[0], list(words[1:]), parent=context)
    except click.exceptions.Exit:
        return None  # --help
    except click.ClickException as error:
        return error.format_message()
    return None


@contextmanager
def _any_path(command: click.Command) -> Iterator[None]:
    """While it lasts, paths need not exist: documents name files that a reader has."""
    paths = [item.type for item in command.params if isinstance(item.type, click.Path) and item.type.exists]
    for kind in paths:
        kind.exists = False
    try:
        yield
    finally:
        for kind in paths:
            kind.exists = True
