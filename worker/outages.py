"""Says that a store is silent, while its callers wait for it: their patience lasts minutes, a person's does not.

After WARN_AFTER_S there is a warning with the store's URI, its endpoint and the last error; another one each time that
the silence has doubled, so some five until a worker gives up; and a line when the store answers again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from contract.logs import STORE_BACK, STORE_SILENT
from contract.store.measured import StoreCall, StoreResult

logger = logging.getLogger(__name__)

WARN_AFTER_S = 10.0
"""Longer than a hiccup, and than what a store that throttles asks for."""

_SILENCE = frozenset({StoreResult.UNAVAILABLE, StoreResult.UNKNOWN})
_ANSWERS = frozenset({StoreResult.OK, StoreResult.CONFLICT, StoreResult.MISSING, StoreResult.DENIED})


class OutageLog:
    """A StoreObserver of one store. Threads may share it: an answer to any of them is one."""

    def __init__(self, uri: str, *, endpoint: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        """`endpoint` is asked once there is something to say."""
        self._uri = uri
        self._endpoint = endpoint
        self._clock = clock
        self._lock = threading.Lock()
        self._silent_since_s: float | None = None
        """When the first call began that had no answer; None = the last one had."""
        self._next_warning_s = WARN_AFTER_S
        """Silence at which to speak next."""

    def __call__(self, call: StoreCall, result: StoreResult, seconds: float, error: Exception | None) -> None:
        """See StoreObserver."""
        with self._lock:
            now_s = self._clock()
            if result in _ANSWERS:
                self._answered(now_s)
            elif result in _SILENCE:
                self._unanswered(now_s, call, seconds, error)

    def _answered(self, now_s: float) -> None:
        if self._silent_since_s is not None and self._next_warning_s > WARN_AFTER_S:
            logger.info(STORE_BACK, extra={"store": self._uri, "silent_s": round(now_s - self._silent_since_s)})
        self._silent_since_s, self._next_warning_s = None, WARN_AFTER_S

    def _unanswered(self, now_s: float, call: StoreCall, seconds: float, error: Exception | None) -> None:
        if self._silent_since_s is None:
            self._silent_since_s = now_s - seconds
        silent_s = now_s - self._silent_since_s
        if silent_s < self._next_warning_s:
            return
        self._next_warning_s = 2 * silent_s
        logger.warning(
            STORE_SILENT,
            extra={
                "store": self._uri,
                "endpoint": self._endpoint(),
                "call": call.value,
                "silent_s": round(silent_s),
                "detail": str(error),
            },
        )
