"""Transitions: every legal change keeps the invariants, whatever the order; what they promise holds."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from contract import manifest, transitions
from contract.manifest import (
    ATTEMPTS_KEPT,
    HISTORY_LENGTH,
    Failure,
    Hints,
    ShardManifest,
    ShardStatus,
    Strike,
    invariants,
)
from contract.names import FailureClass
from contract.ranges import Ranges, count, difference, from_ordinals
from tests.contract import values

FAILURE = Failure(failure_class=FailureClass.TRANSIENT, detail="budget spent")


def claim() -> ShardManifest:
    """Shard 7, claimed for the first time."""
    return transitions.first_claim(values.SHARD, generation=1, owner=values.OWNER, commit_id="c1", now=values.NOW)


def pending() -> ShardManifest:
    """Shard 7, given back after its first claim."""
    return transitions.released(claim(), attempt=values.attempt(), commit_id="c2")


def test_first_claim() -> None:
    """An absent manifest becomes running at epoch 1, version 1, with the shard's range."""
    shard = claim()

    assert invariants(shard, None) is None
    assert (shard.status, shard.epoch, shard.version, shard.owner) == (ShardStatus.RUNNING, 1, 1, values.OWNER)
    assert (shard.shard, shard.object, shard.start, shard.end) == (7, "s3://in/a.fasta", 100, 900)
    assert shard.claimed_at == values.NOW


def test_a_claim_raises_the_epoch() -> None:
    """Taking a pending shard fences whoever worked under the old epoch, and forgets the delay."""
    before = replace(pending(), not_before=values.NOW)

    shard = transitions.claimed(before, owner=values.OTHER_OWNER, commit_id="c3", now=values.NOW)

    assert invariants(shard, before) is None
    assert (shard.status, shard.epoch, shard.owner) == (ShardStatus.RUNNING, 2, values.OTHER_OWNER)
    assert shard.not_before is None


def test_a_claim_that_finds_a_checkpoint_lost_redoes_only_its_records() -> None:
    """A missing object costs its own records; all other checkpoints stay."""
    before = transitions.released(values.running(done=((0, 3), (5, 9))), attempt=values.attempt(), commit_id="r")
    lost = frozenset({before.checkpoints[0].key})

    shard = transitions.claimed(before, owner=values.OTHER_OWNER, commit_id="c", now=values.NOW, lost_keys=lost)

    assert invariants(shard, before) is None
    assert shard.done == ((5, 9),)
    assert shard.checkpoints == before.checkpoints[1:]


def test_commit_settles_records() -> None:
    """A checkpoint settles its range less the quarantined; the owner keeps the shard and its epoch."""
    before = claim()

    shard = transitions.committed(
        before,
        commit_id="c2",
        checkpoint=values.checkpoint(0, 10, records=9),
        quarantined=[values.quarantined(4)],
        bytes_done=500,
        hints=Hints(token_budget=512),
    )

    assert invariants(shard, before) is None
    assert shard.done == ((0, 4), (5, 10))
    assert shard.settled == ((0, 10),)
    assert (shard.status, shard.owner, shard.epoch) == (ShardStatus.RUNNING, values.OWNER, 1)
    assert (shard.bytes_done, shard.hints) == (500, Hints(token_budget=512))


def test_a_commit_without_news_keeps_everything_else() -> None:
    """Progress in bytes never falls and hints stay when a commit does not bring new ones."""
    before = replace(values.running(), bytes_done=500, hints=Hints(token_budget=512))

    shard = transitions.committed(before, commit_id="c", bytes_done=400)

    assert (shard.bytes_done, shard.hints) == (500, Hints(token_budget=512))


@pytest.mark.parametrize("order", list(itertools.permutations(["rows", "quarantine", "end"])))
def test_a_shard_is_complete_exactly_when_all_is_settled_and_the_end_known(order: tuple[str, ...]) -> None:
    """Rows, quarantine and the number of records may come in any order; the last of them completes the shard."""
    commits = {
        "rows": {"checkpoint": values.checkpoint(0, 3)},
        "quarantine": {"quarantined": [values.quarantined(3)]},
        "end": {"records": 4},
    }
    shard = claim()
    statuses = []

    for number, name in enumerate(order):
        before, shard = shard, transitions.committed(shard, commit_id=f"c{number}", **commits[name])
        assert invariants(shard, before) is None
        statuses.append(shard.status)

    assert statuses == [ShardStatus.RUNNING, ShardStatus.RUNNING, ShardStatus.COMPLETE]
    assert shard.owner is None


def test_a_range_without_records_completes() -> None:
    """A range in which no record starts is complete as soon as that is known."""
    assert transitions.committed(claim(), commit_id="c", records=0).status is ShardStatus.COMPLETE


def test_who_completed_a_shard_is_kept_until_it_is_open_again() -> None:
    """A complete shard has no owner; who it was is needed to say what each worker did."""
    complete = transitions.committed(claim(), commit_id="c2", records=0)

    requeued = transitions.requeued(complete, commit_id="c3")

    assert (complete.owner, complete.completed_by) == (None, values.OWNER)
    assert (claim().completed_by, requeued.completed_by) == (None, None)


def test_release_records_the_attempt() -> None:
    """The attempt, its class and whether it counted stay in the manifest; the epoch does not move."""
    before = claim()

    shard = transitions.released(
        before,
        attempt=values.attempt(),
        commit_id="c2",
        in_flight=((5, 8),),
        not_before=values.NOW,
        hints=Hints(token_budget=512),
    )

    assert invariants(shard, before) is None
    assert (shard.status, shard.owner, shard.epoch) == (ShardStatus.PENDING, None, 1)
    assert shard.attempts == (values.attempt(),)
    assert (shard.restarts.total, shard.restarts.counted) == (1, 1)
    assert shard.restarts.by_class == (("Transient", 1),)
    assert shard.strikes == (Strike(first=5, next=8, count=1),)
    assert (shard.not_before, shard.hints) == (values.NOW, Hints(token_budget=512))


def test_an_uncounted_attempt_is_counted_in_total_only() -> None:
    """A spot eviction is remembered and charged to nothing."""
    attempt = values.attempt(counted=False, failure_class=FailureClass.SPOT_EVICTION)

    shard = transitions.released(claim(), attempt=attempt, commit_id="c2")

    assert (shard.restarts.total, shard.restarts.counted) == (1, 0)
    assert shard.restarts.by_class == (("SpotEviction", 1),)


@pytest.mark.parametrize(
    ("commit", "streak"),
    [
        ({"checkpoint": values.checkpoint(0, 3)}, 0),
        ({"quarantined": [values.quarantined(0)]}, 0),
        ({"records": 9}, 2),
        ({"bytes_done": 100}, 2),
    ],
    ids=["rows", "quarantine", "end of range", "bytes"],
)
def test_progress_ends_a_streak(commit: dict[str, Any], streak: int) -> None:
    """Charges since the last progress start anew once a record is settled, and only then; the totals stay."""
    charged = transitions.released(claim(), attempt=values.attempt(), commit_id="c2", streak=2)
    before = transitions.claimed(charged, owner=values.OWNER, commit_id="c3", now=values.NOW)

    shard = transitions.committed(before, commit_id="c4", **commit)

    assert (before.restarts.streak, shard.restarts.streak) == (2, streak)
    assert shard.restarts.counted == 1


def test_a_release_is_recognised_by_pod_and_epoch() -> None:
    """A replay of the same release can be told from a new one: same pod uid and epoch."""
    shard = pending()

    assert transitions.is_released(shard, uid=values.OWNER.uid, epoch=1)
    assert not transitions.is_released(shard, uid=values.OWNER.uid, epoch=2)
    assert not transitions.is_released(shard, uid="other", epoch=1)


def test_a_spent_budget_fails_the_shard() -> None:
    """A failure makes the shard final, says why, and leaves no date to try again."""
    before = claim()

    shard = transitions.released(
        before, attempt=values.attempt(), commit_id="c2", failure=FAILURE, not_before=values.NOW
    )

    assert invariants(shard, before) is None
    assert (shard.status, shard.failure, shard.not_before) == (ShardStatus.FAILED, FAILURE, None)


def test_a_release_whose_quarantine_settles_the_last_record_completes() -> None:
    """The record that kept killing workers was the last one: the shard is complete, not failed."""
    before = values.running(done=((0, 3),), records=4)

    shard = transitions.released(
        before,
        attempt=values.attempt(),
        commit_id="c",
        in_flight=((3, 4),),
        quarantined=[values.quarantined(3)],
        not_before=values.NOW,
        failure=FAILURE,
    )

    assert invariants(shard, before) is None
    assert (shard.status, shard.failure, shard.not_before) == (ShardStatus.COMPLETE, None, None)
    assert shard.strikes == ()


def test_history_and_attempts_are_bounded() -> None:
    """A manifest does not grow with its age; the counts go on."""
    shard = claim()

    for number in range(2 * HISTORY_LENGTH):
        attempt = values.attempt(uid=f"uid-{number}", epoch=shard.epoch)
        shard = transitions.released(shard, attempt=attempt, commit_id=f"r{number}")
        shard = transitions.claimed(shard, owner=values.OWNER, commit_id=f"c{number}", now=values.NOW)

    assert len(shard.history) == HISTORY_LENGTH
    assert shard.history[-2:] == (f"r{2 * HISTORY_LENGTH - 1}", f"c{2 * HISTORY_LENGTH - 1}")
    assert len(shard.attempts) == ATTEMPTS_KEPT
    assert shard.attempts[-1].uid == f"uid-{2 * HISTORY_LENGTH - 1}"
    assert shard.restarts.total == 2 * HISTORY_LENGTH


def test_requeue_gives_a_fresh_budget() -> None:
    """A failed shard becomes pending at a new epoch without strikes, hints or failure; its rows and totals stay."""
    before = values.full_manifest()

    shard = transitions.requeued(before, commit_id="q")

    assert invariants(shard, before) is None
    assert (shard.status, shard.epoch, shard.failure) == (ShardStatus.PENDING, before.epoch + 1, None)
    assert (shard.strikes, shard.hints, shard.not_before) == ((), Hints(), None)
    assert (shard.restarts.total, shard.restarts.counted) == (5, 0)
    assert (shard.done, shard.quarantined) == (before.done, before.quarantined)


def test_requeue_takes_the_quarantine_back_on_demand() -> None:
    """Quarantined records run again after a fix; done ones do not."""
    before = values.full_manifest()

    shard = transitions.requeued(before, commit_id="q", retry_quarantined=True)

    assert invariants(shard, before) is None
    assert shard.settled == before.done


def test_requeue_of_a_complete_shard_with_a_corrupt_checkpoint() -> None:
    """A complete shard is opened again for the records of the lost object alone."""
    before = transitions.committed(values.running(done=((0, 3), (3, 9))), commit_id="c", records=9)

    shard = transitions.requeued(before, commit_id="q", lost_keys=frozenset({before.checkpoints[1].key}))

    assert before.status is ShardStatus.COMPLETE
    assert invariants(shard, before) is None
    assert (shard.status, shard.done) == (ShardStatus.PENDING, ((0, 3),))


def test_a_held_shard_cannot_be_requeued() -> None:
    """Somebody works on it: the message names the pod and what to do first."""
    with pytest.raises(ValueError, match="held by run-0-1; release it first"):
        transitions.requeued(claim(), commit_id="q")


@pytest.mark.parametrize(("lost", "kept"), [(0, ((4, 5),)), (1, ((0, 4), (5, 10)))])
def test_a_retried_record_survives_the_loss_of_the_checkpoint_around_it(lost: int, kept: Ranges) -> None:
    """[0, 10) without record 4, then 4 alone after a retry: losing either object costs just that object's rows."""
    first = transitions.committed(
        claim(), commit_id="c2", checkpoint=values.checkpoint(0, 10, records=9), quarantined=[values.quarantined(4)]
    )
    released = transitions.released(first, attempt=values.attempt(), commit_id="c3")
    retried = transitions.requeued(released, commit_id="c4", retry_quarantined=True)
    again = transitions.claimed(retried, owner=values.OWNER, commit_id="c5", now=values.NOW)
    both = transitions.committed(again, commit_id="c6", checkpoint=values.checkpoint(4, 5, epoch=3, number=1))
    free = transitions.released(both, attempt=values.attempt(epoch=3), commit_id="c7")

    shard = transitions.requeued(free, commit_id="c8", lost_keys=frozenset({both.checkpoints[lost].key}))

    assert invariants(shard, free) is None
    assert shard.done == kept


def test_reset_starts_above_every_known_epoch() -> None:
    """In place of an unreadable manifest comes a pending one at the given epoch, with nothing done."""
    shard = transitions.reset(values.SHARD, generation=1, epoch=9, commit_id="x")

    assert invariants(shard, None) is None
    assert (shard.status, shard.epoch, shard.done) == (ShardStatus.PENDING, 9, ())
    assert manifest.is_claimable(shard, values.NOW)


ordinal_sets = st.sets(st.integers(0, 12)).map(from_ordinals)


@given(st.lists(ordinal_sets, max_size=6))
def test_struck_counts_each_ordinal(flights: list[Ranges]) -> None:
    """After any deaths, an ordinal has as many strikes as flights it was in; ranges are disjoint and sorted."""
    strikes: tuple[Strike, ...] = ()

    for flight in flights:
        strikes = transitions.struck(strikes, flight)

    counts = {ordinal: strike.count for strike in strikes for ordinal in range(strike.first, strike.next)}
    expected = {
        ordinal: hits
        for ordinal in range(13)
        if (hits := sum(any(start <= ordinal < end for start, end in flight) for flight in flights))
    }
    assert counts == expected
    assert sum(strike.next - strike.first for strike in strikes) == len(counts)
    assert list(strikes) == sorted(strikes, key=lambda strike: strike.first)


def test_struck_splits_where_counts_differ() -> None:
    """A batch of 100 died, then record 40 alone: only 40 has two strikes."""
    strikes = transitions.struck(transitions.struck((), ((0, 100),)), ((40, 41),))

    assert [(strike.first, strike.next, strike.count) for strike in strikes] == [(0, 40, 1), (40, 41, 2), (41, 100, 1)]


def test_settled_records_have_no_strikes() -> None:
    """Once a record has its row, or is quarantined, nothing is held against it."""
    before = replace(values.running(), strikes=(Strike(first=0, next=10, count=1),))

    shard = transitions.committed(
        before, commit_id="c", checkpoint=values.checkpoint(2, 5), quarantined=[values.quarantined(8)]
    )

    assert [(strike.first, strike.next) for strike in shard.strikes] == [(0, 2), (5, 8), (9, 10)]


NUM_RECORDS = 12


class ShardLife(RuleBasedStateMachine):
    """A shard of 12 records through claims, commits, deaths, retries and lost objects, in any order.

    `rows` is the world outside the manifest: which records each stored object really holds.
    """

    @initialize()
    def first_claim(self) -> None:
        """A worker meets a shard nobody has touched."""
        self.rows: dict[str, Ranges] = {}
        self.current = claim()
        self.previous: ShardManifest | None = None
        self.numbers = itertools.count(1)
        self.highest_epoch = 1

    def put(self, new: ShardManifest) -> None:
        """Replace the stored version."""
        self.previous, self.current = self.current, new

    def commit_id(self) -> str:
        """An id not used before."""
        return f"id-{next(self.numbers)}"

    @precondition(lambda self: self.current.status is ShardStatus.PENDING)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        """A worker takes the shard; some objects may have vanished."""
        lost = data.draw(st.sets(st.sampled_from(sorted(self.rows)))) if self.rows else set()
        for key in lost:
            del self.rows[key]
        self.put(
            transitions.claimed(
                self.current,
                owner=values.OWNER,
                commit_id=self.commit_id(),
                now=values.NOW,
                lost_keys=frozenset(lost),
            )
        )

    @precondition(lambda self: self.current.status is ShardStatus.RUNNING)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        """The owner commits a prefix of the first gap; some of its records go to quarantine, possibly all of them."""
        gaps = difference(((0, NUM_RECORDS),), self.current.settled)
        records = data.draw(st.sampled_from([None, NUM_RECORDS]))
        if not gaps:
            self.put(transitions.committed(self.current, commit_id=self.commit_id(), records=NUM_RECORDS))
            return
        first, end = data.draw(st.sampled_from(gaps))
        following = data.draw(st.integers(first + 1, end))
        bad = data.draw(st.sets(st.integers(first, following - 1)))
        rows = difference(((first, following),), from_ordinals(bad))
        checkpoint = None
        if rows:
            number = next(self.numbers)
            checkpoint = values.checkpoint(
                first, following, epoch=self.current.epoch, number=number, records=count(rows)
            )
            self.rows[checkpoint.key] = rows
        self.put(
            transitions.committed(
                self.current,
                commit_id=self.commit_id(),
                checkpoint=checkpoint,
                quarantined=[values.quarantined(ordinal) for ordinal in bad],
                records=records,
            )
        )

    @precondition(lambda self: self.current.status is ShardStatus.RUNNING)
    @rule(in_flight=ordinal_sets, counted=st.booleans(), is_spent=st.booleans())
    def release(self, in_flight: Ranges, counted: bool, is_spent: bool) -> None:  # noqa: FBT001
        """The owner ends, in one way or another."""
        self.put(
            transitions.released(
                self.current,
                attempt=values.attempt(epoch=self.current.epoch, counted=counted),
                commit_id=self.commit_id(),
                in_flight=in_flight,
                not_before=values.NOW + timedelta(seconds=1),
                failure=FAILURE if is_spent else None,
            )
        )

    @precondition(lambda self: self.current.owner is None)
    @rule(data=st.data(), retry_quarantined=st.booleans())
    def requeue(self, data: st.DataObject, retry_quarantined: bool) -> None:  # noqa: FBT001
        """Somebody asks for another try, perhaps because objects are corrupt."""
        lost = data.draw(st.sets(st.sampled_from(sorted(self.rows)))) if self.rows else set()
        for key in lost:
            del self.rows[key]
        self.put(
            transitions.requeued(
                self.current,
                commit_id=self.commit_id(),
                lost_keys=frozenset(lost),
                retry_quarantined=retry_quarantined,
            )
        )

    @invariant()
    def each_step_is_legal(self) -> None:
        """No transition makes a version that `invariants` would refuse."""
        assert invariants(self.current, self.previous) is None
        assert self.current.epoch >= self.highest_epoch
        self.highest_epoch = self.current.epoch

    @invariant()
    def done_is_what_the_objects_hold(self) -> None:
        """Every record counted as done is in exactly one stored object that the manifest names, and no other is."""
        assert {item.key for item in self.current.checkpoints} == set(self.rows)
        held = sorted(ordinal for rows in self.rows.values() for start, end in rows for ordinal in range(start, end))
        assert held == [ordinal for start, end in self.current.done for ordinal in range(start, end)]

    @invariant()
    def it_survives_being_stored(self) -> None:
        """The stored form gives the same version back."""
        assert manifest.from_json(manifest.to_json(self.current), where="m.json") == self.current


TestShardLife = ShardLife.TestCase
TestShardLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
