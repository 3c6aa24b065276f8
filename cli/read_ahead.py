"""Checkpoints fetched ahead of their use, several at a time, within a bound on memory.

A read over S3 waits for 30 ms before its first byte and then gets some 100 MB/s: one at a time, a verification of a terabyte
would mostly wait. What is fetched is bytes whose size and sha256 are checked; what is in them is the caller's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

from cli.checkpoints import fetched
from contract.manifest import Checkpoint
from contract.store.commit import Committer

NUM_READERS = 8
MAX_BYTES = 256 << 20
"""Held or on the way; a single checkpoint may be larger, and is then fetched alone."""


class ReadAhead:
    """Fetches `items` in their order. Use it as a context; leaving it drops what was not taken."""

    def __init__(
        self,
        committer: Committer,
        items: Iterable[Checkpoint],
        *,
        max_bytes: int = MAX_BYTES,
        num_readers: int = NUM_READERS,
    ) -> None:
        """Nothing is fetched before the context is entered.

        Args:
            committer: the output's.
            items: what will be taken, in about this order.
            max_bytes: bound on what is held or on the way, by the sizes that manifests name.
            num_readers: reads at a time.
        """
        self._committer = committer
        self._waiting = deque(items)
        self._max_bytes = max_bytes
        self._threads = ThreadPoolExecutor(num_readers)
        self._ahead: dict[str, tuple[int, Future[bytes]]] = {}
        """(bytes, content) by key."""
        self._num_bytes = 0

    def take(self, item: Checkpoint) -> bytes:
        """The content of `item`, waited for if need be. Raises Corrupt and the store's errors, as `fetched` does."""
        found = self._ahead.pop(item.key, None)
        if found is None:  # taken out of order
            with suppress(ValueError):
                self._waiting.remove(item)
            return fetched(self._committer, item)
        num_bytes, content = found
        try:
            return content.result()
        finally:
            self._num_bytes -= num_bytes
            self._fetch()

    def _fetch(self) -> None:
        while self._waiting and (not self._ahead or self._num_bytes + self._waiting[0].bytes <= self._max_bytes):
            item = self._waiting.popleft()
            if item.key not in self._ahead:
                self._ahead[item.key] = (item.bytes, self._threads.submit(fetched, self._committer, item))
                self._num_bytes += item.bytes

    def __enter__(self) -> Self:
        self._fetch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
