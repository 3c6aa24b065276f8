"""Ranged reads of a planned object."""

from __future__ import annotations

from functools import partial

import pytest

from contract.errors import InvalidInput
from contract.store.commit import BUDGET_S, Patience
from contract.store.errors import AccessDenied, Unavailable
from contract.store.memory import MemoryStore
from contract.store.protocol import ETag, Stored
from worker.records.source import StoreSource

URI = "memory://bucket/a"


class Moody(MemoryStore):
    """Answers reads with the errors (or stored objects) it is given, then as it should."""

    def __init__(self, answers: list[Exception | Stored]) -> None:
        super().__init__("memory://bucket")
        self.answers = answers
        self.num_gets = 0

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """See ObjectStore."""
        self.num_gets += 1
        answer = self.answers.pop(0) if self.answers else super().get(key, start=start, end=end)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, duration_s: float) -> None:
        """Let time pass."""
        self.now_s += duration_s


def planned(store: MemoryStore, body: bytes = b"0123456789", clock: Clock | None = None) -> StoreSource:
    """A source over a new object `a`."""
    etag = store.put_create("a", body)
    clock = clock or Clock()
    patience = partial(Patience, sleep=clock.sleep, clock=lambda: clock.now_s, uniform=lambda _, high: high)
    return StoreSource(store, "a", uri=URI, size=len(body), etag=etag, patience=patience)


@pytest.mark.parametrize(
    ("start", "end", "body"), [(0, 4, b"0123"), (4, 10, b"456789"), (8, 99, b"89"), (10, 99, b""), (5, 5, b"")]
)
def test_a_read_gives_the_range_cut_at_the_objects_size(start: int, end: int, body: bytes) -> None:
    """As planned."""
    source = planned(MemoryStore())

    assert (source.read(start, end), source.size, source.uri) == (body, 10, URI)


def test_a_read_rides_out_a_store_that_does_not_answer() -> None:
    """Nor a reply that was cut short reaches the reader."""
    store = Moody([])
    source = planned(store)
    store.answers = [Unavailable("a", "503"), Unavailable("a", "reset"), Stored(b"01", ETag("1"))]

    assert source.read(0, 4) == b"0123"
    assert store.num_gets == 4


def test_a_read_gives_up_after_the_budget() -> None:
    """With the last error, after at least a try a second."""
    clock = Clock()
    store = Moody([Unavailable("a", "503")] * 1000)
    source = planned(store, clock=clock)

    with pytest.raises(Unavailable, match=r"gave up after .* attempts in .*503"):
        source.read(0, 4)

    assert BUDGET_S - 2 < clock.now_s <= BUDGET_S
    assert BUDGET_S <= store.num_gets < BUDGET_S + 40


def test_a_refusal_is_not_tried_again() -> None:
    """Credentials do not mend themselves."""
    store = Moody([])
    source = planned(store)
    store.answers = [AccessDenied("a", "no")]

    with pytest.raises(AccessDenied):
        source.read(0, 4)

    assert store.num_gets == 1


@pytest.mark.parametrize("body", [b"9876543210", b"short"])
def test_an_object_that_changed_is_refused(body: bytes) -> None:
    """Rows of two versions must never meet in one output; also when the new version ends before the range."""
    store = MemoryStore()
    source = planned(store)
    store.put_overwrite("a", body)

    with pytest.raises(InvalidInput, match=rf"{URI}: the object has changed since it was planned .* .resume: Restart"):
        source.read(6, 8)


def test_an_object_that_is_gone_is_refused() -> None:
    """Permanent, so the worker does not wait for it."""
    store = MemoryStore()
    source = planned(store)
    store.delete("a")

    with pytest.raises(InvalidInput, match=f"{URI}: the object is gone since it was planned"):
        source.read(0, 4)
