"""A record as the readers yield it, and the seam to the bytes it is read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a shard's range. Its identity is (object, offset); the id need not be unique."""

    ordinal: int
    """0-based place among all records of the range, unreadable ones included."""
    offset: int
    """Where the record starts: bytes of the decompressed object; for bgzf, the BGZF virtual offset."""
    next_offset: int
    """Where reading resumes after this record, in the same units as `offset`."""
    position: int
    """Stored (compressed) bytes of the range consumed up to and including this record: progress only."""
    id: str
    """First word of a FASTA header, the id member of a JSON object, or the offset in decimal."""
    value: Any
    """What the model gets: str (sequence or line) or a JSON value. None when `problem` is set."""
    problem: str | None = None
    """Why the record cannot be used (it goes to quarantine as InvalidRecord); None = fine."""


class ByteSource(Protocol):
    """Random access to the stored (compressed) bytes of one object."""

    @property
    def uri(self) -> str:
        """The object's URI, for messages."""
        ...

    @property
    def size(self) -> int:
        """Stored bytes of the object, as planned."""
        ...

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, min(end, size)). Retries what may pass; raises store errors otherwise."""
        ...
