"""A store whose calls are told to an observer: which, how each ended, how long it took. Changes nothing else.

What becomes of the numbers is the observer's business, so that no side's metrics library enters the contract.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from contract.store.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    Unavailable,
)
from contract.store.protocol import Body, ETag, Listed, ObjectStore, Stored


class StoreCall(StrEnum):
    """Which call of the ObjectStore protocol."""

    GET = "get"
    PUT_OVERWRITE = "put_overwrite"
    PUT_CREATE = "put_create"
    PUT_UPDATE = "put_update"
    LIST = "list"
    DELETE = "delete"


class StoreResult(StrEnum):
    """How a call ended."""

    OK = "ok"
    CONFLICT = "conflict"
    """A conditional put whose condition did not hold: somebody else was first, or our own put whose reply was lost."""
    MISSING = "missing"
    UNKNOWN = "unknown"
    """A write that may or may not have been applied."""
    UNAVAILABLE = "unavailable"
    DENIED = "denied"
    ERROR = "error"
    """Anything else: our own mistake."""


_RESULTS: tuple[tuple[type[Exception], StoreResult], ...] = (
    (AlreadyExists, StoreResult.CONFLICT),
    (PreconditionFailed, StoreResult.CONFLICT),
    (NotFound, StoreResult.MISSING),
    (OutcomeUnknown, StoreResult.UNKNOWN),
    (Unavailable, StoreResult.UNAVAILABLE),
    (AccessDenied, StoreResult.DENIED),
)


class StoreObserver(Protocol):
    """Told of every call, in the thread that made it. Must be fast and never raise."""

    def __call__(self, call: StoreCall, result: StoreResult, seconds: float, error: Exception | None, /) -> None:
        """One call, retries that the backend makes by itself included; `error` is what it raised, None = nothing."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredStore:
    """An ObjectStore over another one."""

    store: ObjectStore
    observe: StoreObserver
    clock: Callable[[], float] = field(default=time.perf_counter, kw_only=True)

    @property
    def uri(self) -> str:
        """See ObjectStore."""
        return self.store.uri

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """See ObjectStore."""
        with self._measured(StoreCall.GET):
            return self.store.get(key, start=start, end=end)

    def put_overwrite(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        with self._measured(StoreCall.PUT_OVERWRITE):
            return self.store.put_overwrite(key, body)

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        with self._measured(StoreCall.PUT_CREATE):
            return self.store.put_create(key, body)

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        with self._measured(StoreCall.PUT_UPDATE):
            return self.store.put_update(key, body, etag)

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """See ObjectStore. Measured to its end, what the caller does between two objects included."""
        with self._measured(StoreCall.LIST):
            yield from self.store.list(prefix, is_deep=is_deep)

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with self._measured(StoreCall.DELETE):
            self.store.delete(key)

    @contextmanager
    def _measured(self, call: StoreCall) -> Iterator[None]:
        started_s = self.clock()
        result, raised = StoreResult.ERROR, None
        try:
            yield
            result = StoreResult.OK
        except GeneratorExit:
            result = StoreResult.OK  # a listing that nobody reads on
            raise
        except Exception as error:
            result = next((found for kind, found in _RESULTS if isinstance(error, kind)), StoreResult.ERROR)
            raised = error
            raise
        finally:
            self.observe(call, result, self.clock() - started_s, raised)
