"""The plan: input objects cut into byte ranges (shards), from a listing alone. Pure.

A record belongs to the range in which it starts; readers align to the next record. So planning a terabyte costs a
listing and no read. Plain gzip cannot be entered in the middle: one shard per object. Block gzip (bgzf) can: its ranges
are ranges of compressed bytes, and a range owns the blocks that start in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from contract.documents import decode, encode, reading_fields

KIND = "Plan"
FORMAT_VERSION = 1


class InputFormat(StrEnum):
    """How records are laid out in the (decompressed) object."""

    FASTA = "fasta"
    JSONL = "jsonl"
    LINES = "lines"


class Compression(StrEnum):
    """How an object is compressed, which decides where a range may start and what a record's offset counts."""

    NONE = "none"
    """Offsets are bytes of the object."""
    GZIP = "gzip"
    """Offsets are bytes of the decompressed object; one shard."""
    BGZF = "bgzf"
    """Offsets are BGZF virtual offsets: block start << 16 | byte within the decompressed block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputObject:
    """One input object as listed."""

    uri: str
    size: int
    """Bytes as stored (compressed)."""
    etag: str
    compression: Compression = Compression.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A byte range of one object: the unit of claiming, fencing and accounting."""

    shard: int
    object: str
    """URI of the object."""
    start: int
    end: int
    """Half-open range of stored (compressed) bytes."""
    compression: Compression


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All shards of a generation."""

    generation: int
    format: InputFormat
    shard_bytes: int
    objects: tuple[InputObject, ...]
    shards: tuple[Shard, ...]

    @property
    def total_bytes(self) -> int:
        """Stored bytes of all shards."""
        return sum(shard.end - shard.start for shard in self.shards)


def cut(objects: Iterable[InputObject], *, generation: int, fmt: InputFormat, shard_bytes: int) -> Plan:
    """Cut `objects`, in URI order, into shards of nearly equal size, none above `shard_bytes` (but plain gzip). Pure.

    Equal pieces instead of full ones plus a rest: a 65 MiB object at 64 MiB becomes two of 32.5 MiB, so no worker is
    left with a crumb. An empty object has no record and gets no shard; it stays in `objects`.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be positive, not {shard_bytes}")
    ordered = tuple(sorted(objects, key=lambda item: item.uri))
    if len({item.uri for item in ordered}) != len(ordered):
        raise ValueError("an object is listed twice: its records would be read twice")
    shards: list[Shard] = []
    for item in ordered:
        pieces = 1 if item.compression is Compression.GZIP else -(-item.size // shard_bytes)
        for piece in range(pieces if item.size else 0):
            start, end = item.size * piece // pieces, item.size * (piece + 1) // pieces
            shards.append(Shard(shard=len(shards), object=item.uri, start=start, end=end, compression=item.compression))
    return Plan(generation=generation, format=fmt, shard_bytes=shard_bytes, objects=ordered, shards=tuple(shards))


def to_json(plan: Plan) -> bytes:
    """Stored bytes: a pure function of the plan, so two planners write the same object."""
    positions = {item.uri: position for position, item in enumerate(plan.objects)}
    fields: dict[str, Any] = {
        "generation": plan.generation,
        "format": plan.format.value,
        "shardBytes": plan.shard_bytes,
        "objects": [
            {"uri": item.uri, "size": item.size, "etag": item.etag, "compression": item.compression.value}
            for item in plan.objects
        ],
        "shards": [[positions[shard.object], shard.start, shard.end] for shard in plan.shards],
    }
    return encode(KIND, FORMAT_VERSION, fields)


def from_json(body: bytes, *, where: str) -> Plan:
    """The plan stored in `body`; raises Corrupt or NewerFormat."""
    fields = decode(KIND, FORMAT_VERSION, body, where=where)
    with reading_fields(KIND, where=where):
        objects = tuple(
            InputObject(
                uri=item["uri"], size=item["size"], etag=item["etag"], compression=Compression(item["compression"])
            )
            for item in fields["objects"]
        )
        return Plan(
            generation=fields["generation"],
            format=InputFormat(fields["format"]),
            shard_bytes=fields["shardBytes"],
            objects=objects,
            shards=tuple(
                Shard(
                    shard=number,
                    object=objects[position].uri,
                    start=start,
                    end=end,
                    compression=objects[position].compression,
                )
                for number, (position, start, end) in enumerate(fields["shards"])
            ),
        )
