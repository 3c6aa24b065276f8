"""Snapshots: named cuts over all shards, as frozen values and their JSON. Pure.

A snapshot names each shard's manifest version (ETag, commit id, epoch) and the checkpoints in it. It is written once and
never changed, and `cleanup` keeps what it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from contract.documents import decode, encode, reading_fields
from contract.layout import checked_data_key
from contract.manifest import ShardStatus, stamp

KIND = "Snapshot"
FORMAT_VERSION = 1


class Cut(StrEnum):
    """What holds between the versions of a snapshot."""

    INSTANT = "instant"
    """All were current at one instant."""
    PER_SHARD = "perShard"
    """Each was current when it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotShard:
    """One shard's version."""

    shard: int
    etag: str
    commit_id: str
    epoch: int
    status: ShardStatus
    records: int
    """Rows in its checkpoints."""
    checkpoints: tuple[str, ...]
    """Keys, by first record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A named cut; shards that were never claimed are not in it."""

    name: str
    generation: int
    created_at: datetime
    cut: Cut
    shards: tuple[SnapshotShard, ...]

    @property
    def records(self) -> int:
        """Rows in all checkpoints."""
        return sum(item.records for item in self.shards)

    @property
    def keys(self) -> frozenset[str]:
        """Checkpoints of all shards."""
        return frozenset(key for item in self.shards for key in item.checkpoints)


def to_fields(snapshot: Snapshot) -> dict[str, Any]:
    """The members of the document."""
    return {
        "name": snapshot.name,
        "generation": snapshot.generation,
        "createdAt": stamp(snapshot.created_at),
        "cut": snapshot.cut.value,
        "records": snapshot.records,
        "shards": [
            {
                "shard": item.shard,
                "etag": item.etag,
                "commitId": item.commit_id,
                "epoch": item.epoch,
                "status": item.status.value,
                "records": item.records,
                "checkpoints": list(item.checkpoints),
            }
            for item in snapshot.shards
        ],
    }


def to_json(snapshot: Snapshot) -> bytes:
    """Stored bytes."""
    return encode(KIND, FORMAT_VERSION, to_fields(snapshot))


def from_json(body: bytes, *, where: str) -> Snapshot:
    """The snapshot stored in `body`; raises Corrupt (for a key outside its shard too) or NewerFormat."""
    fields = decode(KIND, FORMAT_VERSION, body, where=where)
    with reading_fields(KIND, where=where):
        snapshot = Snapshot(
            name=fields["name"],
            generation=fields["generation"],
            created_at=datetime.fromisoformat(fields["createdAt"]),
            cut=Cut(fields["cut"]),
            shards=tuple(
                SnapshotShard(
                    shard=item["shard"],
                    etag=item["etag"],
                    commit_id=item["commitId"],
                    epoch=item["epoch"],
                    status=ShardStatus(item["status"]),
                    records=item["records"],
                    checkpoints=tuple(item["checkpoints"]),
                )
                for item in fields["shards"]
            ),
        )
    for item in snapshot.shards:
        for key in item.checkpoints:
            checked_data_key(key, generation=snapshot.generation, shard=item.shard, where=where)
    return snapshot
