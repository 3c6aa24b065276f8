"""docs/store-layout.md names exactly the fields that are stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import coordinator_lock, snapshots
from cli.coordinator_lock import CoordinatorLock
from cli.snapshots import Cut, Snapshot, SnapshotShard
from contract import index, layout, manifest, plan, run_record
from contract.names import CheckpointReason, QuarantineClass
from contract.store.commit import Committer
from contract.store.memory import MemoryStore
from tests.contract import values
from worker.batching import Item
from worker.checkpoint import PendingRows, build_content
from worker.isolation import Finished
from worker.model_client import Rows

DOCUMENT = (Path(__file__).parents[1] / "docs" / "store-layout.md").read_text()
COMMON = {"kind", "formatVersion", "checksum"}
FREE_KEYS = {"restarts.byClass", "memory"}
"""Their members are failure classes, and what the planner likes to remember."""


def section(title: str) -> str:
    """Text below a second-level heading."""
    return DOCUMENT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def documented(title: str) -> set[str]:
    """Names in the first column of the section's tables."""
    rows = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| `")]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


def stored(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all members: `owner` and `owner.pod`, `checkpoints` and `checkpoints[].key`."""
    if isinstance(value, dict) and path not in FREE_KEYS:
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


def coordinator_body() -> bytes:
    """coordinator.json as a coordinator that has just started leaves it."""
    store = MemoryStore()
    CoordinatorLock(Committer(store), new_id=lambda: "id").acquire(values.NOW)
    return store.get(layout.COORDINATOR_KEY).body


SNAPSHOT = Snapshot(
    name="before",
    generation=1,
    created_at=values.NOW,
    cut=Cut.INSTANT,
    shards=(
        SnapshotShard(
            shard=7,
            etag="e",
            commit_id="c",
            epoch=1,
            status=manifest.ShardStatus.RUNNING,
            records=1,
            checkpoints=(layout.build_data_key(1, 7, 1, 0),),
        ),
    ),
)


@pytest.mark.parametrize(
    ("title", "found"),
    [
        ("run.json", paths(run_record.to_json(values.run_record()))),
        ("coordinator.json", paths(coordinator_body())),
        ("Snapshots", paths(snapshots.to_json(SNAPSHOT))),
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
    [
        ("Shard manifest", [*QuarantineClass, *manifest.ShardStatus]),
        ("Snapshots", [*Cut]),
        ("Checkpoint objects", [*CheckpointReason]),
    ],
)
def test_values_are_documented(title: str, names: list[str]) -> None:
    """Closed sets are spelt out where their field is described."""
    assert [name for name in names if f"`{name}`" not in section(title)] == []


@pytest.mark.parametrize(
    "kind",
    [run_record.KIND, coordinator_lock.KIND, plan.KIND, manifest.KIND, snapshots.KIND, index.KIND],
)
def test_kinds_are_documented(kind: str) -> None:
    """Each kind of document is named."""
    assert f"`{kind}`" in section("All documents")


def test_members_of_a_checkpoint_are_documented_both_ways() -> None:
    """What the worker writes into a checkpoint is what the document says; `createdAt` is added when it is uploaded."""
    item = Item(ordinal=0, offset=0, next_offset=9, position=9, id="a", payload=b"", num_tokens=1, is_truncated=False)
    pending = PendingRows()
    pending.add(Finished(items=(item,), rows=Rows(values=torch.zeros(1, 2), splits=(1,))))

    content = build_content(
        pending,
        values.running(),
        values.worker_settings(),
        number=0,
        reason=CheckpointReason.SHUTDOWN,
        versions={},
    )

    assert documented("Checkpoint objects") == {*content, *content["metadata"], "createdAt"}
