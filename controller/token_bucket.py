"""A limit on how fast something may be done: so many a second, and so many at once after a pause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class TokenBucket:
    """`burst` tokens at most, `per_second` new ones; `take` waits for one. For one event loop."""

    def __init__(self, per_second: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_second` and `burst` are positive; `clock` gives seconds."""
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._at_s = clock()

    def reserve(self) -> float:
        """Take a token, perhaps one of the future; returns the seconds to wait before it may be used."""
        now_s = self._clock()
        self._tokens = min(float(self._burst), self._tokens + (now_s - self._at_s) * self._per_second)
        self._at_s = now_s
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_second)

    async def take(self) -> None:
        """Wait for a token. Waiters are served in the order in which they came."""
        wait_s = self.reserve()
        if wait_s:
            await asyncio.sleep(wait_s)
