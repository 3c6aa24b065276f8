"""Claiming a shard and giving it back: every state a manifest can be found in, every reply that can be lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from contract import layout, manifest
from contract.errors import Corrupt, Fenced, NewerFormat
from contract.manifest import Failure, Hints, Owner, ShardManifest, ShardStatus
from contract.names import FailureClass
from contract.store.errors import NotFound
from contract.store.memory import MemoryStore
from contract.store.protocol import Body, ETag, Listed, Stored
from contract.transitions import claimed, first_claim, released
from tests import make
from tests.worker.build import ME, NOW, RIVAL, ids, impatient, plan, put_manifest, stored_manifest
from tests.worker.doubtful_store import DoubtfulStore
from worker.claims import Claims, NothingToClaim, give_back
from worker.held_shard import HeldShard

PLAN = plan(3)


def claims_on(
    store: MemoryStore,
    *,
    owner: Owner = ME,
    worker_index: int = 0,
    num_workers: int = 1,
    memory_bytes: int | None = None,
) -> Claims:
    """A worker's view of the plan of three shards."""
    return Claims(
        impatient(store),
        PLAN,
        owner,
        worker_index=worker_index,
        num_workers=num_workers,
        memory_bytes=memory_bytes,
        now=lambda: NOW,
        new_id=ids(owner.uid),
    )


def claim(store: MemoryStore, **options) -> HeldShard:
    """A claim that must succeed."""
    held = claims_on(store, **options).claim_next()
    assert isinstance(held, HeldShard)
    return held


def claimed_first(number: int, owner: Owner = RIVAL) -> ShardManifest:
    """Shard `number`, held by somebody at epoch 1."""
    return first_claim(PLAN.shards[number], generation=1, owner=owner, commit_id=f"claim-{number}", now=NOW)


def given_back(number: int, **options) -> ShardManifest:
    """Shard `number`, claimed once and released."""
    current = claimed_first(number)
    return released(current, attempt=make.attempt(current), commit_id=f"release-{number}", **options)


def completed(number: int) -> ShardManifest:
    """Shard `number`, all its records committed."""
    return replace(make.complete(number), object=PLAN.shards[number].object)


def only_open(store: MemoryStore, value: ShardManifest) -> None:
    """The other shards are complete, this one is as given."""
    for number in range(len(PLAN.shards)):
        put_manifest(store, value if number == value.shard else completed(number))


class MeetingStore(MemoryStore):
    """A store whose reads of manifests wait for each other: one at a time they never come to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.meeting = threading.Barrier(len(PLAN.shards), timeout=5)

    def get(self, key: str, **options) -> Stored:
        """See ObjectStore."""
        if layout.parse_shard_key(key):
            self.meeting.wait()
        return super().get(key, **options)


def test_manifests_are_read_at_once() -> None:
    """A worker that starts late reads what others have completed side by side, not one round trip after the other."""
    store = MeetingStore()
    for number in range(len(PLAN.shards)):
        put_manifest(store, completed(number))

    assert claims_on(store).claim_next() == NothingToClaim(None)


def test_an_untouched_shard_is_claimed_at_epoch_1() -> None:
    """The manifest is made, ours, running."""
    store = MemoryStore()

    held = claim(store)

    assert held.current == stored_manifest(store, 0)
    assert (held.current.epoch, held.current.owner, held.current.status) == (1, ME, ShardStatus.RUNNING)
    assert held.etag == store.get(held.key).etag


def test_claims_begin_at_the_workers_own_place() -> None:
    """Worker 2 of 3 takes shard 2 first, then wraps around."""
    claims = claims_on(MemoryStore(), worker_index=2, num_workers=3)

    taken = [claims.claim_next() for _ in range(3)]

    assert [held.current.shard for held in taken if isinstance(held, HeldShard)] == [2, 0, 1]


class CountingStore(MemoryStore):
    """Counts listings and creations."""

    num_listings = num_creations = 0

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """See ObjectStore."""
        self.num_listings += 1
        return super().list(prefix, is_deep=is_deep)

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        self.num_creations += 1
        return super().put_create(key, body)


def test_a_listing_serves_many_claims() -> None:
    """A worker that nobody interferes with lists twice: before its first claim, and when no untouched shard is left."""
    store = CountingStore()
    claims = claims_on(store)

    taken = [claims.claim_next() for _ in range(4)]

    assert [isinstance(held, HeldShard) for held in taken] == [True, True, True, False]
    assert (store.num_listings, store.num_creations) == (2, 3)


def test_a_listing_that_is_out_of_date_is_made_again() -> None:
    """One claim lost to somebody faster shows that the next ones may be gone too: what is left comes from a new listing."""
    store = CountingStore()
    claims = claims_on(store)
    claims.claim_next()
    put_manifest(store, claimed_first(1))
    put_manifest(store, claimed_first(2))

    assert claims.claim_next() == NothingToClaim(None)
    assert (store.num_listings, store.num_creations) == (2, 2)


def test_what_is_left_is_shared_out_again() -> None:
    """Workers that look again begin at different places of what is left, else they would meet at each next shard."""
    first, second = (claims_on(MemoryStore(), worker_index=index, num_workers=2) for index in range(2))
    for claims in (first, second):
        put_manifest(claims._committer.store, claimed_first(0))

    taken = [claims.claim_next() for claims in (first, second)]

    assert [held.current.shard for held in taken if isinstance(held, HeldShard)] == [1, 2]


def test_untouched_shards_come_before_those_given_back() -> None:
    """A shard that was given back may be waiting for its cause to pass."""
    store = MemoryStore()
    put_manifest(store, given_back(0))

    assert claim(store).current.shard == 1


def test_a_shard_that_was_given_back_is_claimed_at_the_next_epoch() -> None:
    """Epoch 2, ours; the rival's attempt stays on record."""
    store = MemoryStore()
    only_open(store, given_back(1))

    held = claim(store)

    assert held.current == stored_manifest(store, 1)
    assert (held.current.epoch, held.current.owner, held.current.version) == (2, ME, 3)
    assert [attempt.uid for attempt in held.current.attempts] == [RIVAL.uid]


@pytest.mark.parametrize(
    "found",
    [claimed_first(1), make.failed(1), completed(1)],
    ids=["held", "failed", "complete"],
)
def test_held_and_final_shards_are_left_alone(found: ShardManifest) -> None:
    """Nobody takes a shard by itself from an owner, however long ago it was heard of."""
    store = MemoryStore()
    only_open(store, found)

    assert claims_on(store).claim_next() == NothingToClaim(None)
    assert stored_manifest(store, 1) == found


def test_a_shard_in_backoff_is_left_alone_and_says_until_when() -> None:
    """Of two that wait, the earlier instant is reported."""
    store = MemoryStore()
    put_manifest(store, given_back(0, not_before=NOW + timedelta(seconds=9)))
    put_manifest(store, given_back(1, not_before=NOW + timedelta(seconds=5)))
    put_manifest(store, completed(2))

    assert claims_on(store).claim_next() == NothingToClaim(NOW + timedelta(seconds=5))


def test_a_shard_whose_backoff_has_just_ended_is_claimed() -> None:
    """At the instant itself."""
    store = MemoryStore()
    only_open(store, given_back(1, not_before=NOW))

    assert claim(store).current.not_before is None


def test_final_shards_are_read_once() -> None:
    """A finished run of many shards costs each worker one read for each, not one for each claim."""
    store = MemoryStore()
    for number in range(3):
        put_manifest(store, completed(number))
    claims = claims_on(store)
    claims.claim_next()
    for number in range(3):
        store.put_overwrite(layout.build_shard_key(1, number), b"never read again")

    assert claims.claim_next() == NothingToClaim(None)


@pytest.mark.parametrize("fate", ["applied", "lost"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_claim_whose_reply_is_lost_is_settled(fate: str, is_first: bool) -> None:  # noqa: FBT001
    """Applied or not: the shard is ours, by one change, and the next commit works."""
    store = DoubtfulStore()
    if not is_first:
        only_open(store, given_back(1))
    store.fates = [fate]

    held = claim(store)
    give_back(held, failure_class=FailureClass.SPOT_EVICTION, evidence="", now=NOW)

    found = stored_manifest(store, held.current.shard)
    assert (found.epoch, found.version) == ((1, 2) if is_first else (2, 4))


@pytest.mark.parametrize("fate", ["applied", "lost"])
def test_a_rival_that_wins_while_our_reply_is_lost_keeps_the_shard(fate: str) -> None:
    """Whatever happened to our put: the shard is the rival's now, and we take another one."""
    key = layout.build_shard_key(1, 0)

    class Raced(DoubtfulStore):
        """The rival acts between our put and our look at what came of it."""

        def get(self, wanted: str, **options):
            if wanted == key and not self.has_rival_come:
                self.has_rival_come = True
                current = claimed_first(0) if fate == "lost" else stored_manifest(self, 0)
                if fate == "applied":
                    free = released(current, attempt=make.attempt(current), commit_id="release")
                    current = claimed(free, owner=RIVAL, commit_id="rival", now=NOW)
                put_manifest(self, current)
            return super().get(wanted, **options)

    store = Raced()
    store.has_rival_come = False
    store.fates = [fate]

    held = claim(store)

    assert held.current.shard == 1
    assert stored_manifest(store, 0).owner == RIVAL


def test_a_rival_that_takes_a_free_shard_before_our_put_keeps_it() -> None:
    """412 on the claim of a shard that was given back: not ours, and nothing else is left."""

    class Raced(MemoryStore):
        """The rival acts between our read and our put."""

        def put_update(self, key, body, etag):
            put_manifest(self, claimed(given_back(1), owner=RIVAL, commit_id="rival", now=NOW))
            return super().put_update(key, body, etag)

    store = Raced()
    only_open(store, given_back(1))

    assert claims_on(store).claim_next() == NothingToClaim(None)
    assert stored_manifest(store, 1).owner == RIVAL


def test_of_many_workers_exactly_one_gets_each_shard() -> None:
    """Sixteen threads, three shards: three claims, no shard twice."""
    store = MemoryStore()
    barrier = threading.Barrier(16)
    won: list[int] = []

    def compete(number: int) -> None:
        claims = claims_on(store, owner=Owner(pod="", uid=f"uid-{number}", node=""))
        barrier.wait()
        while isinstance(held := claims.claim_next(), HeldShard):
            won.append(held.current.shard)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(won) == [0, 1, 2]


def damaged(store: MemoryStore, *, size: int | None) -> ShardManifest:
    """Shard 1 was given back with three checkpoints; the object of the second is missing or has another size."""
    current = claimed_first(1)
    for first in (0, 10, 20):
        current = make.with_checkpoint(current, first, first + 10)
    current = released(current, attempt=make.attempt(current), commit_id="release")
    only_open(store, current)
    for place, entry in enumerate(current.checkpoints):
        if place != 1 or size is not None:
            store.put_overwrite(entry.key, bytes(size if place == 1 and size is not None else entry.bytes))
    return current


@pytest.mark.parametrize("size", [None, 0, 999, 1001], ids=["missing", "empty", "truncated", "too long"])
def test_a_lost_checkpoint_costs_only_its_own_records(size: int | None) -> None:
    """The claim takes its ten records back and keeps the other twenty."""
    store = MemoryStore()
    before = damaged(store, size=size)

    held = claim(store)

    kept = (before.checkpoints[0], before.checkpoints[2])
    assert (held.current.done, held.current.checkpoints) == (((0, 10), (20, 30)), kept)
    assert stored_manifest(store, 1) == held.current


def test_sound_checkpoints_are_kept_at_a_claim() -> None:
    """Present and of the right size: nothing runs again."""
    store = MemoryStore()
    before = damaged(store, size=1000)

    assert claim(store).current.checkpoints == before.checkpoints


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"not a manifest", Corrupt, "inferencerun repair"),
        (manifest.to_json(claimed_first(1)).replace(b'"epoch":1', b'"epoch":2'), Corrupt, "checksum"),
        (
            manifest.to_json(claimed_first(1)).replace(b'"formatVersion":1', b'"formatVersion":99'),
            NewerFormat,
            "upgrade this installation",
        ),
    ],
    ids=["garbage", "changed by hand", "newer format"],
)
def test_a_manifest_that_cannot_be_trusted_stops_loudly(body: bytes, error: type[Exception], message: str) -> None:
    """Nothing is guessed and nothing overwritten: a human decides."""
    store = MemoryStore()
    only_open(store, given_back(1))
    key = layout.build_shard_key(1, 1)
    store.put_overwrite(key, body)

    with pytest.raises(error, match=message):
        claims_on(store).claim_next()
    assert store.get(key).body == body


def test_a_manifest_deleted_under_a_claim_stops_loudly() -> None:
    """Between the read and the put: NotFound, and nothing is made in its place."""
    key = layout.build_shard_key(1, 1)

    class Deleting(MemoryStore):
        def put_update(self, key, body, etag):
            self.delete(key)
            return super().put_update(key, body, etag)

    store = Deleting()
    only_open(store, given_back(1))

    with pytest.raises(NotFound):
        claims_on(store).claim_next()
    assert key not in {entry.key for entry in store.list()}


def test_a_drained_shard_is_free_at_once_and_nothing_is_charged() -> None:
    """Owner null, the attempt on record with the time it was held, no strike on any budget."""
    store = MemoryStore()
    held = claim(store)

    give_back(
        held,
        failure_class=FailureClass.SPOT_EVICTION,
        evidence="drained on SIGTERM",
        now=NOW + timedelta(seconds=7),
    )

    found = stored_manifest(store)
    (attempt,) = found.attempts
    assert (found.status, found.owner, found.not_before) == (ShardStatus.PENDING, None, None)
    assert (attempt.uid, attempt.epoch, attempt.counted, attempt.held_seconds) == (ME.uid, 1, False, 7.0)
    assert (found.restarts.total, found.restarts.counted) == (1, 0)


def test_a_shard_that_can_never_work_is_given_back_as_failed() -> None:
    """With the reason, and counted."""
    store = MemoryStore()
    held = claim(store)
    failure = Failure(failure_class=FailureClass.CONFIGURATION, detail="not a FASTA file")

    give_back(held, failure_class=FailureClass.CONFIGURATION, evidence="", now=NOW, failure=failure)

    found = stored_manifest(store)
    assert (found.status, found.failure, found.restarts.counted) == (ShardStatus.FAILED, failure, 1)


def test_a_shard_that_is_complete_has_no_owner_to_give_it_back() -> None:
    """The last commit has released it already: nothing is written."""
    store = MemoryStore()
    held = claim(store)
    held.current = completed(0)
    before = stored_manifest(store)

    give_back(held, failure_class=FailureClass.SPOT_EVICTION, evidence="", now=NOW)

    assert stored_manifest(store) == before


def test_a_stale_release_changes_nothing() -> None:
    """The controller was faster: the worker's own release is fenced, the rival keeps the shard."""
    store = MemoryStore()
    held = claim(store)
    free = released(held.current, attempt=make.attempt(held.current), commit_id="release")
    put_manifest(store, claimed(free, owner=RIVAL, commit_id="rival", now=NOW))

    with pytest.raises(Fenced, match="held by rival"):
        give_back(held, failure_class=FailureClass.SPOT_EVICTION, evidence="", now=NOW)
    assert stored_manifest(store).owner == RIVAL


@pytest.mark.parametrize(("memory_bytes", "is_taken"), [(None, True), (8, True), (7, False)])
def test_a_shard_that_needs_more_memory_is_left_to_others(memory_bytes: int | None, *, is_taken: bool) -> None:
    """Whoever has less would be killed over it once more; one without a known limit takes it."""
    store = MemoryStore()
    only_open(store, given_back(1, hints=Hints(memory_bytes=8)))

    found = claims_on(store, memory_bytes=memory_bytes).claim_next()

    assert isinstance(found, HeldShard) == is_taken
    assert is_taken or found == NothingToClaim(None)
