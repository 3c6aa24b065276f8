"""One input object in a store, as planned: ranged reads that ride out what passes and refuse an object that changed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from contract.errors import InvalidInput
from contract.store.errors import NotFound, Unavailable
from contract.store.protocol import ObjectStore, Stored

BACKOFF_BASE_S = 0.05
BACKOFF_CAP_S = 1.0
BUDGET_S = 60.0
"""How long one read is tried while the store does not answer; on top of the store's own retries of reads."""

_REMEDY = "plan it anew in a new generation (resume: Restart), and leave input objects alone while a run reads them"


class StoreSource:
    """A ByteSource over an object of a store."""

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        *,
        uri: str,
        size: int,
        etag: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`uri`, `size` and `etag` are those of the plan; `clock`, `sleep` and `uniform` are for tests."""
        self._store = store
        self._key = key
        self._uri = uri
        self._size = size
        self._etag = etag
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform

    @property
    def uri(self) -> str:
        """The object's URI, for messages."""
        return self._uri

    @property
    def size(self) -> int:
        """Stored bytes of the object, as planned."""
        return self._size

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, min(end, size)).

        Raises:
            InvalidInput: the object changed or went away since it was planned.
            Unavailable: the store did not answer within the budget.
            AccessDenied: at once.
        """
        end = min(end, self._size)
        if start >= end:
            return b""
        stored = self._get(start, end)
        if stored.etag != self._etag:
            raise InvalidInput(
                f"{self._uri}: the object has changed since it was planned (ETag {stored.etag}, planned {self._etag}); "
                f"{_REMEDY}"
            )
        return stored.body

    def _get(self, start: int, end: int) -> Stored:
        give_up_at = self._clock() + BUDGET_S
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._get_whole(start, end)
            except Unavailable as error:
                delay_s = self._uniform(0.0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(attempt, 10)))
                if self._clock() + delay_s > give_up_at:
                    detail = f"no answer for bytes {start}-{end} in {attempt} attempts, {BUDGET_S:g} s: {error.detail}"
                    raise Unavailable(self._key, detail) from error
                self._sleep(delay_s)

    def _get_whole(self, start: int, end: int) -> Stored:
        try:
            stored = self._store.get(self._key, start=start, end=end)
        except NotFound as error:
            raise InvalidInput(f"{self._uri}: the object is gone since it was planned; {_REMEDY}") from error
        # An object of another ETag may well be shorter; the caller says so. The same object cannot: the reply was cut.
        if stored.etag == self._etag and len(stored.body) != end - start:
            raise Unavailable(self._key, f"got {len(stored.body)} of the {end - start} bytes asked for")
        return stored
