"""An object store in memory, for tests: the reference of what the protocol means."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from contract.store.errors import AlreadyExists, NotFound, PreconditionFailed
from contract.store.protocol import Body, ETag, Listed, Stored, checked_range, view_of


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  (an edge: stands for the store's own clock)


class MemoryStore:
    """A dictionary behind one lock. Every put gets an ETag never used before."""

    def __init__(self, uri: str = "memory://store", *, now: Callable[[], datetime] = _now) -> None:
        self._uri = uri.rstrip("/")
        self._now = now
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[Stored, datetime]] = {}
        self._num_puts = 0

    @property
    def uri(self) -> str:
        """Root URI."""
        return self._uri

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """See ObjectStore."""
        checked_range(start, end)
        with self._lock:
            stored = self._found(key)
        return stored if (start, end) == (0, None) else Stored(stored.body[start:end], stored.etag)

    def put_overwrite(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        with self._lock:
            return self._put(key, body)

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        with self._lock:
            if key in self._objects:
                raise AlreadyExists(key, "the object exists")
            return self._put(key, body)

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        with self._lock:
            current = self._found(key)
            if current.etag != etag:
                raise PreconditionFailed(key, f"the ETag is {current.etag}, not {etag}")
            return self._put(key, body)

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """See ObjectStore."""
        with self._lock:
            found = sorted((key, *value) for key, value in self._objects.items() if key.startswith(prefix))
        for key, stored, modified_at in found:
            if not is_deep and "/" in key.removeprefix(prefix):
                continue
            yield Listed(key, len(stored.body), stored.etag, modified_at)

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with self._lock:
            self._objects.pop(key, None)

    def _found(self, key: str) -> Stored:
        if key not in self._objects:
            raise NotFound(key, f"no such object in {self._uri}")
        return self._objects[key][0]

    def _put(self, key: str, body: Body) -> ETag:
        self._num_puts += 1
        etag = ETag(str(self._num_puts))
        with view_of(body) as view:
            self._objects[key] = Stored(bytes(view), etag), self._now()
        return etag
