"""index.json: what a reader needs, written once all shards are final and before _SUCCESS. Pure.

A pure function of plan and manifests (no time, no writer), so a coordinator that dies between the two puts, or two that
finish at once, write the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from contract.documents import decode, encode, reading_fields
from contract.layout import checked_data_key
from contract.manifest import ShardManifest, ShardStatus
from contract.names import QuarantineClass

KIND = "Index"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedFile:
    """A committed checkpoint, in input order: files by shard, then by first record."""

    key: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedQuarantine:
    """A record that is in no file."""

    object: str
    offset: int
    id: str
    quarantine_class: QuarantineClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """All that a finished generation holds."""

    generation: int
    records: int
    """Rows in all files."""
    files: tuple[IndexedFile, ...]
    quarantined: tuple[IndexedQuarantine, ...]
    failed_shards: tuple[int, ...]
    """Shards whose remaining records are in neither; empty unless `maxFailedShards` allows some."""


def build_index(manifests: Iterable[ShardManifest], *, generation: int) -> Index:
    """The index of final manifests."""
    ordered = sorted(manifests, key=lambda item: item.shard)
    files = tuple(
        IndexedFile(key=item.key, records=item.records, bytes=item.bytes, sha256=item.sha256)
        for manifest in ordered
        for item in sorted(manifest.checkpoints, key=lambda item: item.first)
    )
    return Index(
        generation=generation,
        records=sum(item.records for item in files),
        files=files,
        quarantined=tuple(
            IndexedQuarantine(
                object=manifest.object, offset=item.offset, id=item.id, quarantine_class=item.quarantine_class
            )
            for manifest in ordered
            for item in manifest.quarantined
        ),
        failed_shards=tuple(item.shard for item in ordered if item.status is ShardStatus.FAILED),
    )


def to_json(index: Index) -> bytes:
    """Stored bytes."""
    fields: dict[str, Any] = {
        "generation": index.generation,
        "records": index.records,
        "files": [
            {"key": item.key, "records": item.records, "bytes": item.bytes, "sha256": item.sha256}
            for item in index.files
        ],
        "quarantined": [
            {"object": item.object, "offset": item.offset, "id": item.id, "class": item.quarantine_class.value}
            for item in index.quarantined
        ],
        "failedShards": list(index.failed_shards),
    }
    return encode(KIND, FORMAT_VERSION, fields)


def from_json(body: bytes, *, where: str) -> Index:
    """The index stored in `body`; raises Corrupt (for a key outside the generation too) or NewerFormat."""
    fields = decode(KIND, FORMAT_VERSION, body, where=where)
    with reading_fields(KIND, where=where):
        index = Index(
            generation=fields["generation"],
            records=fields["records"],
            files=tuple(IndexedFile(**item) for item in fields["files"]),
            quarantined=tuple(
                IndexedQuarantine(
                    object=item["object"],
                    offset=item["offset"],
                    id=item["id"],
                    quarantine_class=QuarantineClass(item["class"]),
                )
                for item in fields["quarantined"]
            ),
            failed_shards=tuple(fields["failedShards"]),
        )
    for item in index.files:
        checked_data_key(item.key, generation=index.generation, where=where)
    return index
