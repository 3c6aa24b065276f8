"""Every behaviour that the tests of the system before held is held by a test here: tests/README.md names them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "tests/README.md").read_text().split("## What became of", 1)[1]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("| ")][
    1:
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_the_successors_exist(row: list[str]) -> None:
    """Each row names a behaviour there, one here, and functions that are tests."""
    there, here, named = row
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", named)
    defined = {
        (path, item.name)
        for path, _ in tests
        for item in ast.parse((ROOT / path).read_text()).body
        if isinstance(item, ast.FunctionDef)
    }

    assert there
    assert here
    assert tests
    assert set(tests) <= defined


@pytest.mark.parametrize(
    "behaviour",
    [
        "spot preemption",
        "out-of-memory",
        "poison input",
        "transient",
        "retried for ever",
        "two strikes",
        "backoff",
        "orphan",
        "must agree",
        "fresh start",
        "polls",
        "SIGTERM sets a flag",
        "waits 30 s",
    ],
)
def test_no_behaviour_is_left_out(behaviour: str) -> None:
    """All that the tests before were about has a row."""
    assert [row for row in ROWS if behaviour in row[0]]
