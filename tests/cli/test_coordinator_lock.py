"""cli.coordinator_lock: who may coordinate an output, and what the loser of each race is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import count

import pytest

from cli.coordinator_lock import STALE, AlreadyCoordinated, CoordinatorLock, CoordinatorRecord, refusal
from contract import layout
from contract.errors import Fenced
from contract.names import ExitCode
from contract.store.commit import Committer
from contract.store.memory import MemoryStore
from contract.store.protocol import Body, ETag
from tests import make


class OvertakenStore(MemoryStore):
    """Somebody else puts first, once, between our read and our put."""

    overtake: Callable[[], object] | None = None

    def _overtaken(self) -> None:
        overtake, self.overtake = self.overtake, None
        if overtake is not None:
            overtake()

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        self._overtaken()
        return super().put_create(key, body)

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        self._overtaken()
        return super().put_update(key, body, etag)


IDS: Iterator[int] = count()


def lock_on(store: MemoryStore) -> CoordinatorLock:
    """A lock as another coordinator would make it; all of them live in this process."""
    return CoordinatorLock(Committer(store), new_id=lambda: f"id-{next(IDS)}")


def record(*, holder: str | None, heartbeat_at: datetime = make.NOW) -> CoordinatorRecord:
    """coordinator.json."""
    return CoordinatorRecord(
        holder=holder, host="h", heartbeat_at=heartbeat_at, memory={}, version=1, commit_id="c", history=("c",)
    )


@pytest.mark.parametrize("was_there", [False, True])
def test_of_two_that_start_at_once_the_loser_is_told_who_works(*, was_there: bool) -> None:
    """Whether the record was absent or a dead coordinator's, losing the race is to be refused, not to be fenced."""
    store = OvertakenStore()
    if was_there:
        earlier = lock_on(store)
        earlier.acquire(make.NOW)
        earlier.release(make.NOW)
    store.overtake = lambda: lock_on(store).acquire(make.NOW)

    with pytest.raises(AlreadyCoordinated, match="has taken over") as caught:
        lock_on(store).acquire(make.NOW)

    assert caught.value.exit_code is ExitCode.TRANSIENT


def test_memory_is_handed_over_and_a_holder_that_lives_is_left_alone() -> None:
    """The successor gets what was saved last; while the holder lives, nobody gets in, and the record stays."""
    store = MemoryStore()
    first = lock_on(store)
    first.acquire(make.NOW)
    first.save({"a": 1}, make.NOW)
    before = store.get(layout.COORDINATOR_KEY).body

    with pytest.raises(AlreadyCoordinated, match="wait for it or stop it"):
        lock_on(store).acquire(make.later(3600))
    untouched = store.get(layout.COORDINATOR_KEY).body
    first.release(make.NOW)

    assert untouched == before
    assert lock_on(store).acquire(make.NOW) == {"a": 1}


def test_whoever_has_been_overtaken_is_fenced_by_its_next_save_and_cannot_sign_off() -> None:
    """A coordinator that slept through its heartbeats changes nothing of its successor's record."""
    store = MemoryStore()
    sleeper = lock_on(store)
    sleeper.acquire(make.NOW)
    sleeper.release(make.NOW)
    lock_on(store).acquire(make.NOW)
    after = store.get(layout.COORDINATOR_KEY).body

    with pytest.raises(Fenced):
        sleeper.save({}, make.NOW)
    with pytest.raises(Fenced):
        sleeper.release(make.NOW)

    assert store.get(layout.COORDINATOR_KEY).body == after


@pytest.mark.parametrize(
    ("holder", "silent", "is_here", "is_alive", "is_refused"),
    [
        (None, timedelta(), True, True, False),
        ("local:b:7:1", timedelta(), True, True, True),
        ("local:b:7:1", timedelta(), True, False, False),
        ("local:b:7:1", 2 * STALE, True, True, True),
        ("local:b:7:1", STALE - timedelta(seconds=1), False, False, True),
        ("local:b:7:1", STALE, False, False, False),
    ],
)
def test_who_is_refused(
    holder: str | None, silent: timedelta, *, is_here: bool, is_alive: bool, is_refused: bool
) -> None:
    """Here liveness decides and silence does not; of another host silence is all that can be known."""
    found = refusal(record(holder=holder), now=make.NOW + silent, is_here=is_here, is_alive=is_alive)

    assert (found is not None) is is_refused
