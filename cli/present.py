"""What commands print: one JSON line for programs, rich tables on a terminal, plain aligned text elsewhere.

Ids and details come from the user's input and from failing programs, so nothing of them may act on a terminal: control
characters are shown as escapes and rich's markup is never interpreted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import click

from cli.texts import printable

Command = TypeVar("Command", bound=Callable[..., Any])

output_argument = click.argument("output_uri")
generation_option = click.option(
    "--generation",
    type=click.IntRange(min=1),
    default=None,
    help="Which generation to read; the current one if not given.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON line on standard output.")

wording: ContextVar[Callable[[str], str]] = ContextVar("wording", default=str)
"""How a text that says what to do next is said: by the plug-in in its own words, as they are otherwise."""


def say(text: str) -> None:
    """A line that names commands, on standard output."""
    click.echo(wording.get()(text))


def print_json(fields: Mapping[str, Any]) -> None:
    """One line of JSON on standard output."""
    click.echo(json.dumps(fields, separators=(",", ":"), ensure_ascii=False))


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Aligned names and values."""
    shown = [(name, printable(value)) for name, value in pairs]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        click.echo(f"{name:<{width}}  {value}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Rows under their columns; `empty` when there are none."""
    shown = [[printable(cell) for cell in row] for row in rows]
    if not shown:
        click.echo(empty)
    elif sys.stdout.isatty():
        _print_rich_table(columns, shown)
    else:
        lines = [list(columns), *shown]
        widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
        for line in lines:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415  (0.1 s that only a terminal pays)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
