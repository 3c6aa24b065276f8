"""The table of values in the chart's README, made from the comments in values.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

BEGIN, END = "<!-- values: written by make verify -->", "<!-- end of values -->"


@dataclass(frozen=True)
class Value:
    """One value of the chart."""

    path: str
    """With dots: `controller.image.tag`."""
    default: Any
    comment: str


def described(text: str) -> list[Value]:
    """The values of a values.yaml, each with the comment that begins with `# --` above it, in order.

    Raises:
        ValueError: names a value without such a comment.
    """
    return list(_walk(yaml.compose(text), text.splitlines(), "", yaml.safe_load(text)))


def table(values: list[Value]) -> str:
    """Markdown."""
    rows = [f"| `{item.path}` | `{json.dumps(item.default)}` | {_escaped(item.comment)} |" for item in values]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows])


def with_table(readme: str, values: list[Value]) -> str:
    """The README with the table in its place."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{table(values)}\n\n{END}{after}"


def _walk(node: yaml.MappingNode, lines: list[str], path: str, loaded: dict[str, Any]) -> Iterator[Value]:
    for key, value in node.value:
        name, default = f"{path}{key.value}", loaded[key.value]
        comment = _comment(lines[: key.start_mark.line])
        if comment:
            yield Value(name, default, comment)
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(value, lines, f"{name}.", default)
        else:
            raise ValueError(f"values.yaml: {name} has no comment that begins with `# --` above it")


def _comment(lines: list[str]) -> str:
    """The comment at the end of these lines, empty when there is none."""
    found: list[str] = []
    for line in reversed(lines):
        words = line.strip()
        if not words.startswith("#"):
            return ""
        found.insert(0, words.removeprefix("#").strip())
        if words.startswith("# --"):
            return " ".join(found).removeprefix("-- ")
    return ""


def _escaped(comment: str) -> str:
    return comment.replace("|", "\\|")
