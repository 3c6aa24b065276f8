"""docs/store-layout.md names exactly the fields that are stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import index, manifest, plan, run_record
from contract.names import CheckpointReason, QuarantineClass
from tests.contract import values

DOCUMENT = (Path(__file__).parents[2] / "docs" / "store-layout.md").read_text()
COMMON = {"kind", "formatVersion", "checksum"}
FREE_KEYS = "restarts.byClass"
"""Its members are failure classes, not fields."""


def section(title: str) -> str:
    """Text below a second-level heading."""
    return DOCUMENT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def documented(title: str) -> set[str]:
    """Names in the first column of the section's tables."""
    rows = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| `")]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


def stored(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all members: `owner` and `owner.pod`, `checkpoints` and `checkpoints[].key`."""
    if isinstance(value, dict) and path != FREE_KEYS:
        for name, member in value.items():
            yield from stored(member, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from stored(item, f"{path}[]")
    else:
        yield path


def paths(*bodies: bytes) -> set[str]:
    """All paths in any of the documents."""
    return {path for body in bodies for path in stored(json.loads(body))}


@pytest.mark.parametrize(
    ("title", "found"),
    [
        ("run.json", paths(run_record.to_json(values.run_record()))),
        ("plan.json", paths(plan.to_json(values.plan()))),
        (
            "Shard manifest",
            paths(manifest.to_json(values.full_manifest()), manifest.to_json(values.held_manifest())) | {"checkpoints"},
        ),
        ("index.json", paths(index.to_json(values.index()))),
        ("All documents", COMMON),
    ],
)
def test_fields_are_documented_both_ways(title: str, found: set[str]) -> None:
    """Every stored field has a line, and every line names a stored field."""
    assert documented(title) == (found if title == "All documents" else found - COMMON)


@pytest.mark.parametrize(
    ("title", "names"),
    [("Shard manifest", [*QuarantineClass, *manifest.ShardStatus]), ("Checkpoint objects", [*CheckpointReason])],
)
def test_values_are_documented(title: str, names: list[str]) -> None:
    """Closed sets are spelt out where their field is described."""
    assert [name for name in names if f"`{name}`" not in section(title)] == []


@pytest.mark.parametrize("kind", [run_record.KIND, plan.KIND, manifest.KIND, index.KIND])
def test_kinds_are_documented(kind: str) -> None:
    """Each kind of document is named."""
    assert f"`{kind}`" in section("All documents")
