"""The seam to object stores: seven calls, three kinds of put.

Keys are relative to the store's root URI. Bodies are `bytes`, or a `BytesIO` handed over without a copy (read from its
start, left open). An ETag is opaque: compare for equality, never parse. No call retries a conditional put by itself: a
retry below this seam turns one's own success into a conflict (measured for boto3 and obstore), so
`contract.store.commit` settles unknown outcomes above it, where the writer can recognise its own bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import NewType, Protocol

ETag = NewType("ETag", str)
Body = bytes | BytesIO


def view_of(body: Body) -> memoryview:
    """The whole body without a copy, wherever a BytesIO's position is. Release it before the BytesIO is used again."""
    return body.getbuffer() if isinstance(body, BytesIO) else memoryview(body)


def checked_range(start: int, end: int | None) -> None:
    """Raise ValueError unless 0 <= start <= end: a wrong range is the caller's mistake on every backend."""
    if start < 0 or (end is not None and end < start):
        raise ValueError(f"a byte range needs 0 <= start <= end, not [{start}, {end})")


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as read."""

    body: bytes
    etag: ETag


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as listed."""

    key: str
    size: int
    etag: ETag
    modified_at: datetime


class ObjectStore(Protocol):
    """A flat, strongly consistent map from key to bytes with compare-and-swap.

    Every call may raise `AccessDenied` (permanent) besides what it names.
    """

    @property
    def uri(self) -> str:
        """Root URI, without a trailing slash."""
        ...

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """Bytes [start, end) of the object (end None, or beyond its size: to its end), and the whole object's ETag.

        A start at or beyond the object's size gives no bytes.

        Raises:
            NotFound: no such object.
            Unavailable: timeout, reset or 5xx after the store's own retries of reads.
        """
        ...

    def put_overwrite(self, key: str, body: Body) -> ETag:
        """Store unconditionally. For scratch keys only. Raises OutcomeUnknown."""
        ...

    def put_create(self, key: str, body: Body) -> ETag:
        """Store only if the key is absent.

        Raises:
            AlreadyExists: the key exists (perhaps by our own put whose reply was lost).
            OutcomeUnknown: 409, timeout, reset or 5xx: may or may not have been applied, or still land.
        """
        ...

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """Store only if the object's ETag is `etag`.

        Raises:
            PreconditionFailed: the object has another ETag (perhaps by our own put whose reply was lost).
            NotFound: the object is gone. Stop; never re-create it.
            OutcomeUnknown: 409, timeout, reset or 5xx.
        """
        ...

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """Objects whose key starts with `prefix`, in key order; unless `is_deep`, only those with no '/' after it.

        Raises Unavailable.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; an absent one is no error. Raises Unavailable."""
        ...
