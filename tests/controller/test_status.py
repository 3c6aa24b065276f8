"""controller.status and controller.conditions: what is shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from contract.names import ConditionType, FailureClass, Phase
from controller.conditions import Condition, merged
from controller.memory import FailureNote, RunMemory, Sample
from controller.status import RunStatus, goodput, progress, restart_counts, status_fields
from tests import make


def test_status_has_the_shape_of_the_resource() -> None:
    """A status is written with just the names that the resource promises, and without floats."""
    note = FailureNote(
        time=make.NOW, pod="p", node="n", failure_class=FailureClass.TRANSIENT, evidence="exit 1", advice="read"
    )
    condition = Condition(type=ConditionType.COMPLETE, status="True", reason="Succeeded", last_transition_time=make.NOW)

    fields = json.loads(
        json.dumps(status_fields(RunStatus(phase=Phase.RUNNING, last_failures=(note,), conditions=(condition,))))
    )

    assert fields == {
        "phase": "Running",
        "message": "",
        "observedGeneration": 0,
        "conditions": [
            {
                "type": "Complete",
                "status": "True",
                "reason": "Succeeded",
                "message": "",
                "observedGeneration": 0,
                "lastTransitionTime": "2026-01-01T12:00:00.000Z",
            }
        ],
        "progress": {
            "records": 0,
            "bytes": 0,
            "totalBytes": 0,
            "percent": "0.0",
            "recordsPerSecond": "0",
            "etaSeconds": None,
        },
        "shards": {"total": 0, "complete": 0, "running": 0, "failed": 0},
        "workers": {"desired": 0, "active": 0, "ready": 0},
        "restarts": {"total": 0, "counted": 0, "byClass": {}},
        "quarantined": 0,
        "goodput": "0.00",
        "checkpoint": {"everySeconds": "", "evictionsPerHour": "", "costSeconds": ""},
        "lastFailures": [
            {
                "time": "2026-01-01T12:00:00.000Z",
                "pod": "p",
                "node": "n",
                "class": "Transient",
                "evidence": "exit 1",
                "advice": "read",
            }
        ],
    }


@pytest.mark.parametrize(
    ("done", "total", "expected"), [(0, 400, "0.0"), (9999, 10_000, "99.9"), (10_000, 10_000, "100.0"), (0, 0, "100.0")]
)
def test_a_hundred_percent_is_said_of_nothing_less(done: int, total: int, expected: str) -> None:
    """The percentage is cut, not rounded; an empty input is complete."""
    assert progress(Sample(at=make.NOW, records=0, bytes=done), (), total_bytes=total).percent == expected


@pytest.mark.parametrize(("records", "expected"), [(0, "0"), (3, "0.05"), (6000, "100"), (74_048, "1234"), (-60, "0")])
def test_the_rate_has_three_digits_or_is_whole(records: int, expected: str) -> None:
    """Slow and fast runs are both readable; records taken back (a repair) are no negative rate."""
    latest = Sample(at=make.later(60), records=1000 + records, bytes=0)

    found = progress(latest, (Sample(at=make.NOW, records=1000, bytes=0),), total_bytes=10)

    assert found.records_per_second == expected
    assert found.eta_s is None


def test_restarts_add_up_over_manifests_and_memory() -> None:
    """Evictions are in the total and not among those that count."""
    memory = RunMemory(restarts_by_class=(("NodeLost", 2), ("Transient", 1)))

    found = restart_counts(make.observed(make.pending()), memory)

    assert (found.total, found.counted) == (4, 1)
    assert found.by_class == {"NodeLost": 2, "SpotEviction": 1, "Transient": 1}


def test_goodput_is_committed_over_held() -> None:
    """Ten committed seconds of forty held are a quarter; the worker's whole life counts, loading included."""
    held = make.held(done=10)

    assert goodput(make.observed(held), RunMemory(), now=make.later(20)) == 0.5
    assert (
        goodput(make.observed(held, workers=(make.worker(0),)), RunMemory(worker_seconds=20), now=make.later(20))
        == 0.25
    )


def test_goodput_of_a_finished_run_ends_with_its_last_checkpoint() -> None:
    """A complete shard is held until its last commit, not until now."""
    complete = make.complete()
    last = replace(complete.checkpoints[-1], created_at=make.later(20))

    found = goodput(
        make.observed(replace(complete, checkpoints=(*complete.checkpoints[:-1], last))),
        RunMemory(),
        now=make.later(9999),
    )

    assert found == 0.5


def test_goodput_before_anything_was_held_is_zero() -> None:
    """No time, no share."""
    assert goodput(make.observed(), RunMemory(), now=make.NOW) == 0.0


def test_a_new_reason_is_no_transition() -> None:
    """The transition time belongs to the status: a new message or reason leaves it."""
    before = merged((), (Condition(type=ConditionType.DEGRADED, status="True", reason="a"),), now=make.NOW)

    (same,) = merged(before, (Condition(type=ConditionType.DEGRADED, status="True", reason="b"),), now=make.later(1))
    (other,) = merged(before, (Condition(type=ConditionType.DEGRADED, status="False", reason="b"),), now=make.later(1))

    assert (same.last_transition_time, same.reason) == (make.NOW, "b")
    assert other.last_transition_time == make.later(1)
