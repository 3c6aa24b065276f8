"""A store in memory whose replies can be lost: the put was applied, or was not, and the writer is not told which."""

from __future__ import annotations

from collections.abc import Callable

from contract.store.errors import OutcomeUnknown, Unavailable
from contract.store.memory import MemoryStore
from contract.store.protocol import Body, ETag


class DoubtfulStore(MemoryStore):
    """Puts go wrong as told, once for each entry of `fates`; afterwards as usual."""

    def __init__(self) -> None:
        super().__init__("memory://doubtful")
        self.fates: list[str] = []
        """For the next puts, in order: `applied` or `lost` (both answer OutcomeUnknown), or `fine`."""
        self.meanwhile: Callable[[], None] = lambda: None
        """What somebody else does between a put and its lost reply."""
        self.is_down = False
        """Nothing answers."""

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        return self._doubtful(key, lambda: super(DoubtfulStore, self).put_create(key, body))

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        return self._doubtful(key, lambda: super(DoubtfulStore, self).put_update(key, body, etag))

    def get(self, key: str, *, start: int = 0, end: int | None = None):
        """See ObjectStore."""
        if self.is_down:
            raise Unavailable(key, "down")
        return super().get(key, start=start, end=end)

    def _doubtful(self, key: str, put: Callable[[], ETag]) -> ETag:
        if self.is_down:
            raise OutcomeUnknown(key, "down")
        fate = self.fates.pop(0) if self.fates else "fine"
        if fate == "lost":
            raise OutcomeUnknown(key, "timed out, and was not applied")
        etag = put()
        if fate == "applied":
            self.meanwhile()
            raise OutcomeUnknown(key, "timed out, and was applied")
        return etag
