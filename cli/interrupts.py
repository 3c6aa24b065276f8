"""Ctrl-C, SIGTERM and the end of children, for the one loop that waits for them."""

from __future__ import annotations

import signal
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Self


class Interrupts:
    """While entered, counts Ctrl-C and SIGTERM, and ends a wait for each of them and for each child that ends.

    The first asks for a drain, the second to kill; the third has the default effect, wherever this process hangs.
    """

    def __init__(self) -> None:
        self.count = 0
        # A SimpleQueue, since its put may interrupt its own get. A threading.Event may not: set() in a handler waits for
        # ever for the lock that wait() or clear() holds in the very thread it interrupted.
        self._wake: SimpleQueue[None] = SimpleQueue()

    def __enter__(self) -> Self:
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._interrupt)
        signal.signal(signal.SIGCHLD, lambda *_: self._wake.put(None))
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)

    def wait(self, seconds: float) -> None:
        """Wait until something happens, or has happened since the last wait; at most so long."""
        with suppress(Empty):
            self._wake.get(timeout=seconds)
            while True:
                self._wake.get_nowait()

    def _interrupt(self, *_: object) -> None:
        self.count += 1
        if self.count > 1:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._wake.put(None)
