"""Which shard comes first, where reading resumes, and what is left to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.manifest import Quarantined, ShardManifest, Strike
from contract.names import QuarantineClass
from contract.transitions import committed
from tests import make
from worker.shards import Resume, Todo, claim_order, resume_point


def with_offsets(manifest: ShardManifest) -> ShardManifest:
    """The checkpoints know where reading resumes: ten bytes a record."""
    known = tuple(replace(entry, next_offset=10 * entry.next) for entry in manifest.checkpoints)
    return replace(manifest, checkpoints=known)


def in_quarantine(ordinal: int) -> Quarantined:
    """A record refused by the reader."""
    return Quarantined(
        ordinal=ordinal, offset=0, id="", quarantine_class=QuarantineClass.INVALID_RECORD, detail="empty"
    )


@given(st.integers(0, 50), st.integers(0, 70), st.integers(0, 64))
def test_every_worker_tries_every_shard_once(num_shards: int, worker_index: int, num_workers: int) -> None:
    """The order is a permutation, whatever the worker's place."""
    order = claim_order(num_shards, worker_index=worker_index, num_workers=num_workers)

    assert sorted(order) == list(range(num_shards))


@given(st.integers(1, 20), st.integers(1, 10))
def test_workers_that_start_together_begin_apart(num_workers: int, shards_per_worker: int) -> None:
    """With a shard for each worker at least, no two begin at the same one, and they share the plan evenly."""
    num_shards = num_workers * shards_per_worker

    firsts = [claim_order(num_shards, worker_index=index, num_workers=num_workers)[0] for index in range(num_workers)]

    assert firsts == list(range(0, num_shards, shards_per_worker))


def test_the_order_goes_on_from_the_workers_place_and_wraps_around() -> None:
    """Worker 1 of 2 begins in the middle."""
    assert claim_order(5, worker_index=1, num_workers=2) == (2, 3, 4, 0, 1)


def test_an_untouched_shard_is_read_from_its_start() -> None:
    """No checkpoint: offset None, ordinal 0."""
    assert resume_point(make.held()) == Resume(first_ordinal=0, offset=None)


def test_reading_resumes_behind_the_furthest_checkpoint_of_the_settled_start() -> None:
    """Two checkpoints end to end: reading resumes behind the second."""
    manifest = make.with_checkpoint(make.with_checkpoint(make.held(), 0, 10), 10, 30)

    assert resume_point(with_offsets(manifest)) == Resume(first_ordinal=30, offset=300)


def test_a_checkpoint_behind_a_hole_does_not_move_the_resume_point() -> None:
    """Records 10 to 19 are missing, so reading resumes at 10 though 20 to 29 are done."""
    manifest = make.with_checkpoint(make.with_checkpoint(make.held(), 0, 10), 20, 30)

    assert resume_point(with_offsets(manifest)) == Resume(first_ordinal=10, offset=100)


def test_a_quarantined_record_closes_the_hole_before_a_checkpoint() -> None:
    """Record 10 is settled without a row: reading resumes behind the checkpoint that follows it."""
    manifest = committed(make.with_checkpoint(make.held(), 0, 10), commit_id="q", quarantined=[in_quarantine(10)])
    manifest = make.with_checkpoint(manifest, 11, 20)

    assert resume_point(with_offsets(manifest)) == Resume(first_ordinal=20, offset=200)


def test_without_a_known_offset_reading_starts_over() -> None:
    """A checkpoint that does not say where it ended cannot be a resume point."""
    manifest = make.with_checkpoint(make.held(), 0, 10)

    assert resume_point(manifest) == Resume(first_ordinal=0, offset=None)


def test_a_start_that_is_not_settled_is_read_again() -> None:
    """The only checkpoint begins at record 5: everything is read from the start."""
    manifest = make.with_checkpoint(make.held(), 5, 10)

    assert resume_point(with_offsets(manifest)) == Resume(first_ordinal=0, offset=None)


def test_todo_knows_what_is_done_or_quarantined() -> None:
    """Settled are the ordinals of checkpoints and of the quarantine, and no others."""
    manifest = make.with_checkpoint(make.with_checkpoint(make.held(), 1, 3), 6, 8)
    todo = Todo(committed(manifest, commit_id="q", quarantined=[in_quarantine(4)]))

    assert [ordinal for ordinal in range(10) if todo.is_settled(ordinal)] == [1, 2, 4, 6, 7]


@pytest.mark.parametrize(("ordinal", "strikes"), [(4, 0), (5, 2), (6, 1), (9, 1), (10, 0)])
def test_todo_counts_the_strikes_of_a_record(ordinal: int, strikes: int) -> None:
    """Each record has the strikes of the range it lies in, none outside all."""
    manifest = replace(make.held(), strikes=(Strike(first=5, next=6, count=2), Strike(first=6, next=10, count=1)))

    assert Todo(manifest).strikes(ordinal) == strikes
