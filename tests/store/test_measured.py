"""A measured store: the observer learns of each call what it was and how it ended; the caller notices nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from contract.store.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
)
from contract.store.measured import MeasuredStore, StoreCall, StoreResult
from contract.store.memory import MemoryStore
from contract.store.protocol import ETag, Listed, Stored


class Observed:
    """What an observer was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[StoreCall, StoreResult, float]] = []
        self.errors: list[Exception | None] = []

    def __call__(self, call: StoreCall, result: StoreResult, seconds: float, error: Exception | None) -> None:
        """See StoreObserver."""
        self.calls.append((call, result, seconds))
        self.errors.append(error)

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Call and result of each."""
        return [(call.value, result.value) for call, result, _ in self.calls]


def ticking() -> Callable[[], float]:
    """A clock that moves by a second each time it is looked at."""
    ticks = iter(range(100))
    return lambda: float(next(ticks))


def measured(store: MemoryStore | None = None) -> tuple[MeasuredStore, Observed]:
    """A measured store over memory."""
    seen = Observed()
    return MeasuredStore(store or MemoryStore("memory://run"), seen, clock=ticking()), seen


def test_every_call_is_told_with_its_time() -> None:
    """Six calls that work, each of them one tick of the clock."""
    store, seen = measured()

    etag = store.put_create("a", b"1")
    store.put_update("a", b"2", etag)
    store.put_overwrite("b", b"3")
    body = store.get("a", start=0, end=1).body
    keys = [item.key for item in store.list()]
    store.delete("b")

    assert (store.uri, body, keys) == ("memory://run", b"2", ["a", "b"])
    assert {call for call, _ in seen.kinds} == set(StoreCall)
    assert {(result, seconds) for _, result, seconds in seen.calls} == {(StoreResult.OK, 1.0)}
    assert set(seen.errors) == {None}


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (AlreadyExists("k", "there"), "conflict"),
        (PreconditionFailed("k", "moved"), "conflict"),
        (NotFound("k", "gone"), "missing"),
        (OutcomeUnknown("k", "reset"), "unknown"),
        (Unavailable("k", "503"), "unavailable"),
        (AccessDenied("k", "403"), "denied"),
        (StoreError("k", "of a kind to come"), "error"),
        (ZeroDivisionError("our own mistake"), "error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_has_its_result_and_reaches_the_caller(error: Exception, result: str) -> None:
    """The error itself is raised, unchanged, and the observer knows its kind."""

    class Failing(MemoryStore):
        def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
            raise error

    store, seen = measured(Failing("memory://run"))

    with pytest.raises(type(error)) as caught:
        store.get("k")

    assert caught.value is error
    assert seen.kinds == [("get", result)]
    assert seen.errors == [error]


def test_a_real_conflict_is_one() -> None:
    """A second creation and a stale update are conflicts; an update of what is gone is `missing`."""
    store, seen = measured()
    store.put_create("a", b"1")

    for put in (
        lambda: store.put_create("a", b"2"),
        lambda: store.put_update("a", b"2", ETag("stale")),
        lambda: store.put_update("b", b"2", ETag("stale")),
    ):
        with pytest.raises(StoreError):
            put()

    assert seen.kinds[1:] == [("put_create", "conflict"), ("put_update", "conflict"), ("put_update", "missing")]


def test_a_listing_is_told_once_at_its_end() -> None:
    """Also one that nobody reads to its end, and one that fails half-way."""

    class Cut(MemoryStore):
        def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
            yield from super().list(prefix, is_deep=is_deep)
            raise Unavailable(prefix, "503")

    store, seen = measured(Cut("memory://run"))
    store.put_create("a", b"1")

    unread = store.list()
    next(unread)
    unread.close()
    with pytest.raises(Unavailable):
        list(store.list())

    assert seen.kinds[1:] == [("list", "ok"), ("list", "unavailable")]
