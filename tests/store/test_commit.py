"""The committer's waits and its limits, with a clock of our own and a store that fails on command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from contract.store.commit import BUDGET_S, MAX_WAIT_S, Committer
from contract.store.errors import AccessDenied, OutcomeUnknown, PreconditionFailed, StoreError, Superseded, Unavailable
from contract.store.memory import MemoryStore
from contract.store.protocol import Body, ETag, Listed, Stored

KEY = "g0001/shards/00001.json"


def document(*history: str) -> bytes:
    """A document changed by these commits."""
    return json.dumps({"history": list(history)}).encode()


@dataclass
class FakeClock:
    """Time passes only in sleeps; the longest wait allowed is always taken."""

    now_s: float = 1000.0
    waits_s: list[float] = field(default_factory=list)
    bounds_s: list[tuple[float, float]] = field(default_factory=list)

    def sleep(self, wait_s: float) -> None:
        """Let time pass."""
        self.waits_s.append(wait_s)
        self.now_s += wait_s

    def clock(self) -> float:
        """Monotonic seconds."""
        return self.now_s

    def uniform(self, low: float, high: float) -> float:
        """The upper bound."""
        self.bounds_s.append((low, high))
        return high


class FailingStore(MemoryStore):
    """Raises what `fail` says before (or, for writes, after) the real call."""

    def __init__(self) -> None:
        super().__init__()
        self.fail_get: Callable[[str], StoreError | None] = lambda _: None
        self.fail_put: Callable[[str], StoreError | None] = lambda _: None
        self.fail_after: Callable[[str], StoreError | None] = lambda _: None
        self.num_puts = 0

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """See ObjectStore."""
        raise_if(self.fail_get(key))
        return super().get(key, start=start, end=end)

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """See ObjectStore."""
        raise_if(self.fail_get(prefix))
        return super().list(prefix, is_deep=is_deep)

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        raise_if(self.fail_get(key))
        super().delete(key)

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        self.num_puts += 1
        raise_if(self.fail_put(key))
        etag = super().put_create(key, body)
        raise_if(self.fail_after(key))
        return etag

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        self.num_puts += 1
        raise_if(self.fail_put(key))
        new = super().put_update(key, body, etag)
        raise_if(self.fail_after(key))
        return new


def raise_if(error: StoreError | None) -> None:
    """Raise it, if any."""
    if error is not None:
        raise error


@pytest.fixture
def clock() -> FakeClock:
    """A clock at rest."""
    return FakeClock()


@pytest.fixture
def store() -> FailingStore:
    """A store that works until told otherwise."""
    return FailingStore()


@pytest.fixture
def committer(store: FailingStore, clock: FakeClock) -> Committer:
    """A committer on both."""
    return Committer(store, sleep=clock.sleep, clock=clock.clock, uniform=clock.uniform)


def test_a_clear_answer_costs_one_put(store: FailingStore, committer: Committer, clock: FakeClock) -> None:
    """Without trouble there is one put, no read and no wait."""
    store.fail_get = lambda key: AccessDenied(key, "no read expected")

    etag = committer.create_document(KEY, document("a"), commit_id="a").etag
    committer.update_document(KEY, document("a", "b"), etag, commit_id="b")
    committer.create_immutable("data.pt", b"bytes")

    assert store.num_puts == 3
    assert clock.waits_s == []


def test_waits_are_full_jitter_up_to_a_second(store: FailingStore, committer: Committer, clock: FakeClock) -> None:
    """Each wait is drawn from zero to a bound that doubles from 50 ms to 1 s and stays there."""
    store.fail_get = lambda key: Unavailable(key, "down")

    with pytest.raises(Unavailable):
        committer.read(KEY)

    assert {low for low, _ in clock.bounds_s} == {0.0}
    assert [high for _, high in clock.bounds_s][:7] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert max(clock.waits_s) == MAX_WAIT_S


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda committer: committer.read(KEY), Unavailable),
        (lambda committer: committer.list("g0001/"), Unavailable),
        (lambda committer: committer.delete(KEY), Unavailable),
        (lambda committer: committer.create_immutable(KEY, b"x"), OutcomeUnknown),
        (lambda committer: committer.create_document(KEY, document("a"), commit_id="a"), OutcomeUnknown),
        (lambda committer: committer.update_document(KEY, document("a"), ETag("1"), commit_id="a"), OutcomeUnknown),
    ],
    ids=["read", "list", "delete", "create_immutable", "create_document", "update_document"],
)
def test_patience_ends(
    store: FailingStore,
    committer: Committer,
    clock: FakeClock,
    act: Callable[[Committer], object],
    kind: type[StoreError],
) -> None:
    """A store that is down for good ends every operation within its budget, saying how long, how often and why."""
    store.fail_get = lambda key: Unavailable(key, "connection refused")
    store.fail_put = lambda key: OutcomeUnknown(key, "connection refused")

    with pytest.raises(kind, match=r"gave up after \d+ attempts in (179|180) s; last: .*connection refused") as caught:
        act(committer)

    assert type(caught.value) is kind
    assert BUDGET_S - MAX_WAIT_S <= clock.now_s - 1000.0 <= BUDGET_S


def test_a_shorter_patience_ends_sooner(store: FailingStore, clock: FakeClock) -> None:
    """The controller's: it looks again later, and other runs want its threads."""
    store.fail_get = lambda key: Unavailable(key, "connection refused")
    hasty = Committer(store, budget_s=5, sleep=clock.sleep, clock=clock.clock, uniform=clock.uniform)

    with pytest.raises(Unavailable, match="gave up"):
        hasty.read(KEY)

    assert 5 - MAX_WAIT_S <= clock.now_s - 1000.0 <= 5


def test_slow_calls_spend_the_budget_too(store: FailingStore, committer: Committer, clock: FakeClock) -> None:
    """Three calls that each hang for a minute are the whole budget: the budget is for all time, not for the waits."""

    def hang(key: str) -> StoreError:
        clock.now_s += 60.0
        return OutcomeUnknown(key, "timed out")

    store.fail_put = hang
    with pytest.raises(OutcomeUnknown, match="after 3 attempts in 180 s"):
        committer.create_immutable(KEY, b"x")

    assert store.num_puts == 3


def test_each_operation_has_a_budget_of_its_own(store: FailingStore, committer: Committer, clock: FakeClock) -> None:
    """A committer that waited long before is as patient as a new one."""
    errors = iter([Unavailable(KEY, "down")] * 3)
    store.put_create(KEY, document("a"))
    clock.now_s += 1e6
    store.fail_get = lambda _: next(errors, None)

    assert committer.read(KEY).body == document("a")


def test_a_store_that_contradicts_itself_ends_too(store: FailingStore, committer: Committer) -> None:
    """Refusals that the object itself contradicts are no endless loop."""
    etag = store.put_create(KEY, document("a"))
    store.fail_put = lambda key: PreconditionFailed(key, "so it says")

    with pytest.raises(OutcomeUnknown, match="the ETag reads unchanged"):
        committer.update_document(KEY, document("a", "b"), etag, commit_id="b")


def test_a_write_whose_outcome_cannot_be_read(store: FailingStore, committer: Committer) -> None:
    """When the put's reply is lost and the store then cannot be read, the outcome is unknown, not unavailable."""
    store.fail_after = lambda key: OutcomeUnknown(key, "reset")
    store.fail_get = lambda key: Unavailable(key, "down")

    with pytest.raises(OutcomeUnknown, match="put, then unreadable: down"):
        committer.create_document(KEY, document("a"), commit_id="a")

    assert MemoryStore.get(store, KEY).body == document("a")


def test_access_denied_is_never_retried(store: FailingStore, committer: Committer, clock: FakeClock) -> None:
    """A refusal stops a read and a write at once."""
    store.fail_get = lambda key: AccessDenied(key, "no")
    store.fail_put = lambda key: AccessDenied(key, "no")

    for act in (lambda: committer.read(KEY), lambda: committer.create_immutable(KEY, b"x")):
        with pytest.raises(AccessDenied):
            act()

    assert clock.waits_s == []


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b'"a"', b"{}", b'{"history": ["other"]}', b"\xff\xfe"])
def test_what_cannot_be_ours_is_not_ours(store: FailingStore, committer: Committer, body: bytes) -> None:
    """Whatever stands in the way, unreadable too, is handed to the caller as somebody else's."""
    store.put_create(KEY, body)

    with pytest.raises(Superseded) as caught:
        committer.create_document(KEY, document("a"), commit_id="a")

    assert caught.value.current.body == body


def test_the_error_keeps_its_cause(store: FailingStore, committer: Committer) -> None:
    """Superseded names the refusal it follows from."""
    store.put_create(KEY, document("rival"))

    with pytest.raises(Superseded) as caught:
        committer.create_document(KEY, document("a"), commit_id="a")

    assert "exists" in str(caught.value.__cause__)


def test_a_commit_that_history_still_holds(store: FailingStore, committer: Committer) -> None:
    """Our commit is recognised below many changes of others, as long as the history holds it."""
    etag = store.put_create(KEY, document("a"))
    later = [f"c{number}" for number in range(62)]

    def land_and_pass_on(key: str) -> StoreError:
        store.fail_after = lambda _: None
        MemoryStore.put_update(store, KEY, document("a", "b", *later), MemoryStore.get(store, KEY).etag)
        return OutcomeUnknown(key, "reset")

    store.fail_after = land_and_pass_on
    committed = committer.update_document(KEY, document("a", "b"), etag, commit_id="b")

    assert committed.superseded_by == store.get(KEY)
    assert committed.etag == store.get(KEY).etag
    assert store.num_puts == 2  # the creation above and one update
