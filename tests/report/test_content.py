"""What a report says follows from the manifests: who held which shard when, and where the time went."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest

from cli.report_content import (
    MAX_POINTS,
    NUM_BINS,
    UNKNOWN_WORKER,
    Ending,
    Holding,
    Use,
    bins_of,
    holdings_of,
    lanes_of,
    progress_of,
    sizes_of,
    uses_of,
)
from contract.manifest import Attempt, ShardManifest
from contract.names import FailureClass
from contract.plan import Compression
from tests.contract import values
from tests.report.runs import START, Story

NOW = values.NOW + timedelta(hours=1)


def a_holding(
    start_s: float,
    end_s: float,
    *,
    pod: str = "run-0-0",
    useful_s: float = 0.0,
    stalled_s: float = 0.0,
    ending: Ending,
) -> Holding:
    """A time with a shard, in seconds after START."""
    return Holding(
        shard=0,
        epoch=1,
        pod=pod,
        uid=f"uid-{pod}",
        node="n",
        started_at=START + timedelta(seconds=start_s),
        committed_at=START + timedelta(seconds=start_s + useful_s),
        ended_at=START + timedelta(seconds=end_s),
        ending=ending,
        failure_class=None,
        evidence="",
        useful_s=useful_s,
        stalled_s=stalled_s,
        records=0,
    )


def test_a_held_shard_is_held_until_now() -> None:
    """By its owner, from its claim."""
    (found,) = holdings_of(values.held_manifest(), NOW)

    assert (found.pod, found.node, found.ending) == (values.OWNER.pod, values.OWNER.node, Ending.HELD)
    assert (found.started_at, found.ended_at) == (values.NOW, NOW)


def test_a_complete_shard_was_held_until_its_last_commit_by_who_completed_it() -> None:
    """It has no owner any more; `completedBy` names the worker."""
    (complete,) = (item for item in Story(num_shards=1, num_workers=1, seed=2).manifests.values() if not item.attempts)

    (found,) = holdings_of(complete, NOW)

    assert (found.pod, found.ending) == ("swissprot-esm2-0-0", Ending.COMPLETE)
    assert found.ended_at == complete.checkpoints[-1].created_at
    assert found.useful_s == pytest.approx(sum(item.seconds for item in complete.checkpoints), abs=0.01)


@pytest.mark.parametrize(
    ("failure_class", "ending"),
    [
        (FailureClass.DONE, Ending.COMPLETE),
        (FailureClass.INTENDED, Ending.STOPPED),
        (FailureClass.SPOT_EVICTION, Ending.EVICTED),
        (FailureClass.NODE_LOST, Ending.NODE),
        (FailureClass.NODE_REJECTED, Ending.NODE),
        (FailureClass.GPU_HARDWARE, Ending.NODE),
        (FailureClass.OUT_OF_MEMORY, Ending.FAILED),
        (FailureClass.TRANSIENT, Ending.FAILED),
    ],
)
def test_an_ended_attempt_is_marked_by_its_class(failure_class: FailureClass, ending: Ending) -> None:
    """With its evidence, and from as far back as it held the shard."""
    current = replace(values.running(), attempts=(values.attempt(failure_class=failure_class),), owner=None)

    (found,) = holdings_of(current, NOW)

    assert (found.ending, found.failure_class, found.evidence) == (ending, failure_class, "exit code 75")
    assert (found.ended_at, found.held_s) == (values.NOW, 12.25)


def test_checkpoints_that_no_attempt_explains_are_shown_without_a_name() -> None:
    """A manifest keeps the last 20 attempts: older writers are unknown, their work is not."""
    earlier = values.checkpoint(0, 5)
    current = replace(values.running(), epoch=30, checkpoints=(earlier,), claimed_at=values.NOW + timedelta(minutes=30))

    unknown, held = holdings_of(current, NOW)

    assert (unknown.pod, unknown.ending, unknown.records) == (UNKNOWN_WORKER, Ending.UNKNOWN, earlier.records)
    assert unknown.held_s == pytest.approx(earlier.seconds)
    assert (held.epoch, held.ending, held.useful_s) == (30, Ending.HELD, 0.0)


def test_workers_in_one_place_share_a_lane() -> None:
    """`<run>-<slot>-<attempt>`: the attempts of a slot follow each other, ordered by number, not by text."""
    pods = ("run-10-0", "run-2-0", "run-2-1", "my-pod")
    holdings = [a_holding(at, at + 1, pod=pod, ending=Ending.COMPLETE) for at, pod in enumerate(pods)]

    lanes = lanes_of(holdings)

    assert [lane.name for lane in lanes] == ["worker 2", "worker 10", "my-pod"]
    assert [item.pod for item in lanes[0].holdings] == ["run-2-0", "run-2-1"]


def test_every_second_of_a_lane_is_in_exactly_one_use() -> None:
    """From a lane's first claim to its last end: committed, lost, between shards or replacing."""
    holdings = (
        a_holding(0, 100, useful_s=90, stalled_s=4, ending=Ending.COMPLETE),
        a_holding(102, 150, useful_s=30, ending=Ending.EVICTED),
        a_holding(210, 250, pod="run-0-1", useful_s=25, ending=Ending.FAILED),
        a_holding(260, 300, pod="run-0-2", useful_s=40, ending=Ending.HELD),
    )

    uses = uses_of(lanes_of(holdings))

    assert uses == {
        Use.COMMITTED: 181,
        Use.STALLED: 4,
        Use.IN_FLIGHT: 0,
        Use.EVICTED: 18,
        Use.FAILED: 15,
        Use.FINISHING: 10,
        Use.BETWEEN: 2,
        Use.REPLACING: 70,
    }
    assert sum(uses.values()) == 300


def test_the_bins_hold_all_records_and_all_worker_time() -> None:
    """Spreading a checkpoint over the seconds that made it neither loses nor invents records."""
    content = Story(num_shards=40, num_workers=5).content
    width_s = content.elapsed_s / NUM_BINS

    num_records = sum(item.records_per_s for item in content.bins) * width_s
    held_s = sum(item.workers for item in content.bins) * width_s

    assert num_records == pytest.approx(content.points[-1].records)
    assert held_s == pytest.approx(sum(item.held_s for lane in content.lanes for item in lane.holdings))
    assert sum(item.num_bad_ends for item in content.bins) == sum(lane.num_bad_ends for lane in content.lanes) > 0
    assert max(item.workers for item in content.bins) <= 5 + 1e-9


def test_a_run_without_time_has_no_bins() -> None:
    """Nothing has been claimed, or it was claimed this very moment."""
    assert bins_of((), (), started_at=START, ended_at=START) == ()


def test_progress_never_falls_and_is_bounded() -> None:
    """However many checkpoints there are, the curve has a few hundred points and ends with all records."""
    checkpoints = [
        replace(values.checkpoint(0, 5), created_at=START + timedelta(seconds=at), records=3) for at in range(5_000)
    ]

    points = progress_of(checkpoints, started_at=START, ended_at=START + timedelta(hours=2))

    assert len(points) <= MAX_POINTS + 3
    assert points[-1].records == 15_000
    assert all(a.at <= b.at and a.records <= b.records for a, b in pairwise(points))


def test_sizes_come_from_the_offsets_between_checkpoints() -> None:
    """Weighted by records; the story's records have 310 to 460 bytes."""
    content = Story(num_shards=30, num_workers=4).content

    assert sum(item.records for item in content.sizes) == pytest.approx(content.points[-1].records, rel=0.001)
    assert 300 < content.sizes[0].from_bytes < content.sizes[-1].to_bytes < 470


def test_virtual_offsets_tell_no_sizes() -> None:
    """In a BGZF object the difference of two offsets is no number of bytes."""
    story = Story(num_shards=3, num_workers=1)
    shards = tuple(replace(item, compression=Compression.BGZF) for item in story.plan.shards)

    assert sizes_of(replace(story.plan, shards=shards), story.stored.readable) == ()


def test_failures_are_the_newest_first_and_carry_advice() -> None:
    """Intended stops are no failures."""
    content = Story(num_shards=300, num_workers=6).content
    ended = [line.attempt.ended_at for line in content.failures]

    assert ended == sorted(ended, reverse=True)
    assert len(ended) == 20
    assert FailureClass.INTENDED not in {line.attempt.failure_class for line in content.failures}
    assert "maxTokensPerBatch" in next(
        line.advice for line in content.failures if line.attempt.failure_class is FailureClass.OUT_OF_MEMORY
    )


def test_an_attempt_of_unknown_length_starts_with_its_first_checkpoint() -> None:
    """`heldSeconds` is null when nobody knew when the shard had been claimed."""
    checkpoint = values.checkpoint(0, 5)
    attempt: Attempt = replace(
        values.attempt(), held_seconds=None, ended_at=checkpoint.created_at + timedelta(seconds=9)
    )
    current: ShardManifest = replace(
        values.running(), owner=None, claimed_at=None, checkpoints=(checkpoint,), attempts=(attempt,)
    )

    (found,) = holdings_of(current, NOW)

    assert found.held_s == pytest.approx(9 + checkpoint.seconds)
    assert found.committed_at == checkpoint.created_at
