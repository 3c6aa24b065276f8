"""A store whose process is killed (SIGKILL, nothing is cleaned up) just before or just after its k-th call."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from contract.store.protocol import Body, ETag, Listed, ObjectStore, Stored


class KillingStore:
    """Wraps a real store. `kill_at` counts from 0; None only counts."""

    def __init__(self, store: ObjectStore, *, kill_at: int | None, is_after: bool) -> None:
        self._store = store
        self._kill_at = kill_at
        self._is_after = is_after
        self.num_calls = 0
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        """See ObjectStore."""
        return self._store.uri

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """See ObjectStore."""
        with self._call():
            return self._store.get(key, start=start, end=end)

    def put_overwrite(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        with self._call():
            return self._store.put_overwrite(key, body)

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        with self._call():
            return self._store.put_create(key, body)

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        with self._call():
            return self._store.put_update(key, body, etag)

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """See ObjectStore."""
        with self._call():
            return iter(list(self._store.list(prefix, is_deep=is_deep)))

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with self._call():
            self._store.delete(key)

    @contextmanager
    def _call(self) -> Iterator[None]:
        with self._lock:  # calls come from several threads: each has a number of its own, and every number is given
            number = self.num_calls
            self.num_calls += 1
        if number == self._kill_at and not self._is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            yield
        finally:  # an error is an answer too
            if number == self._kill_at and self._is_after:
                os.kill(os.getpid(), signal.SIGKILL)
