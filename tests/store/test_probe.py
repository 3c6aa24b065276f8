"""The probe and the race tests can fail: against stores that ignore a condition, and against those that race."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from contract.layout import PROBE_PREFIX
from contract.store.errors import AccessDenied, OutcomeUnknown, StoreError, UnsuitableStore
from contract.store.memory import MemoryStore
from contract.store.open import open_store
from contract.store.probe import NUM_RACERS, probe
from contract.store.protocol import Body, ETag
from tests.servers import S3Server


class CreatesTwice(MemoryStore):
    """Ignores If-None-Match."""

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        return self.put_overwrite(key, body)


class UpdatesStale(MemoryStore):
    """Ignores If-Match on an object that exists."""

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        self.get(key)
        return self.put_overwrite(key, body)


class UpdatesMissing(MemoryStore):
    """Ignores If-Match on an absent object."""

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        if any(True for _ in self.list(key)):
            return super().put_update(key, body, etag)
        return self.put_overwrite(key, body)


class TwoSteps(MemoryStore):
    """Compares, lets others compare too, and only then writes."""

    def __init__(self, racing: str) -> None:
        super().__init__()
        self.racing = racing
        self.together = threading.Barrier(NUM_RACERS)

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        if self.racing != "create" or not in_pool():
            return super().put_create(key, body)
        self.together.wait()
        return self.put_overwrite(key, body)

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        if self.racing != "update" or not in_pool():
            return super().put_update(key, body, etag)
        assert self.get(key).etag == etag
        self.together.wait()
        return self.put_overwrite(key, body)


class LosesTheWinner(MemoryStore):
    """Says that one racer won, and keeps another's bytes."""

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        return super().put_create(key, b"nobody's" if in_pool() else body)


class Silent(MemoryStore):
    """Never gives a clear answer to a conditional put."""

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        raise OutcomeUnknown(key, "timed out")


class RepliesLostInTheRace(MemoryStore):
    """Loses every reply of the first race."""

    num_lost = 0

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        if not in_pool() or self.num_lost >= NUM_RACERS:
            return super().put_create(key, body)
        self.num_lost += 1
        try:
            super().put_create(key, body)
        except StoreError as error:
            raise OutcomeUnknown(key, "reset") from error
        raise OutcomeUnknown(key, "reset")


class Undeletable(CreatesTwice):
    """Ignores conditions, and forbids deletes."""

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        raise AccessDenied(key, "no deletes here")


def in_pool() -> bool:
    """Whether this is one of the racers."""
    return threading.current_thread() is not threading.main_thread()


@pytest.mark.parametrize(
    ("store", "seen"),
    [
        (CreatesTwice(), "creating a key that exists succeeded"),
        (UpdatesStale(), "a put with a stale ETag succeeded"),
        (UpdatesMissing(), "made a key that was absent"),
        (TwoSteps("create"), "8 of 8 concurrent puts created it"),
        (TwoSteps("update"), "8 of 8 concurrent puts changed it"),
        (LosesTheWinner(), "not the winner's"),
        (Undeletable(), "creating a key that exists succeeded"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MemoryStore) else "",
)
def test_each_check_catches_its_fault(store: MemoryStore, seen: str) -> None:
    """A store with one fault is refused, with what was seen, what it means and which stores work."""
    with pytest.raises(UnsuitableStore, match=seen) as caught:
        probe(store, nonce="n")

    assert caught.value.key.startswith(f"{PROBE_PREFIX}n/")
    assert "Known to work: AWS S3" in str(caught.value)


@pytest.mark.parametrize("store", [CreatesTwice(), UpdatesStale(), TwoSteps("update")])
def test_a_verdict_leaves_nothing_behind(store: MemoryStore) -> None:
    """The keys of a probe that failed are removed as well."""
    with pytest.raises(UnsuitableStore):
        probe(store, nonce="n")

    assert list(store.list()) == []


def test_a_race_without_a_known_winner_is_run_again() -> None:
    """When every reply of a race is lost there is no verdict: the next race gives it."""
    store = RepliesLostInTheRace()

    probe(store, nonce="n", sleep=lambda _: None)

    assert store.num_lost == NUM_RACERS
    assert list(store.list()) == []


def test_silence_is_no_verdict() -> None:
    """A store that never answers clearly is OutcomeUnknown after the budget, not unsuitable."""
    now = [0.0]

    def sleep(wait_s: float) -> None:
        now[0] += wait_s

    with pytest.raises(OutcomeUnknown, match="gave up after"):
        probe(Silent(), nonce="n", sleep=sleep, clock=lambda: now[0], uniform=lambda _, high: high)


def test_a_server_that_ignores_conditions_is_refused(
    ignoring_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real S3 server that drops the conditions is refused, and nothing of the probe stays in the bucket."""
    ignoring_server.use(monkeypatch)
    store = open_store(f"s3://{ignoring_server.new_bucket()}/run")

    with pytest.raises(UnsuitableStore, match="creating a key that exists succeeded"):
        probe(store, nonce="n")

    assert list(store.list()) == []


def test_the_race_for_creation_fails_on_a_server_that_ignores_conditions(
    ignoring_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race that every backend wins with one winner has eight here: the race test is able to fail."""
    ignoring_server.use(monkeypatch)
    store = open_store(f"s3://{ignoring_server.new_bucket()}/run")

    assert winners_of_creation(store.put_create, "key") == 8


@pytest.fixture
def _eager_threads() -> Iterator[None]:
    """Threads change every 10 microseconds, which makes the race in moto's handler likely."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("_eager_threads")
def test_the_race_for_creation_fails_on_a_racy_server(racy_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that compares and writes in two steps lets two creations of one key win, sooner or later."""
    racy_server.use(monkeypatch)
    store = open_store(f"s3://{racy_server.new_bucket()}/run")

    assert any(winners_of_creation(store.put_create, f"key-{turn}") > 1 for turn in range(300))


def winners_of_creation(put_create: Callable[[str, bytes], ETag], key: str) -> int:
    """How many of eight concurrent creations of one key succeed."""
    barrier = threading.Barrier(8)

    def run(racer: int) -> bool:
        barrier.wait()
        try:
            put_create(key, b"racer %d" % racer)
        except StoreError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(run, range(8)))
