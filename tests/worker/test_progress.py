"""When a checkpoint is due, and why."""

from __future__ import annotations

import pytest

from contract.names import CheckpointReason
from contract.settings import CheckpointSettings
from worker.progress import Pending, checkpoint_due

SETTINGS = CheckpointSettings(every_records=10_000, every_seconds=300, every_bytes=1 << 20, emergency_seconds=600)


def due(
    records: int = 1, size: int = 0, seconds: float = 0, *, is_window_open: bool = False
) -> CheckpointReason | None:
    """The verdict on so much pending work."""
    pending = Pending(num_records=records, num_bytes=size, seconds=seconds)
    return checkpoint_due(SETTINGS, pending, is_window_open=is_window_open)


@pytest.mark.parametrize(
    ("below", "at", "reason"),
    [
        ({"records": 9_999}, {"records": 10_000}, CheckpointReason.SEQUENCE_THRESHOLD),
        ({"size": (1 << 20) - 1}, {"size": 1 << 20}, CheckpointReason.BYTES_THRESHOLD),
        ({"seconds": 299.9}, {"seconds": 300}, CheckpointReason.TIME_THRESHOLD),
        ({}, {"seconds": 600}, CheckpointReason.EMERGENCY_TIME_OVERRIDE),
    ],
    ids=["records", "bytes", "time", "emergency"],
)
def test_each_trigger_fires_at_its_threshold_and_not_below(below: dict, at: dict, reason: CheckpointReason) -> None:
    """The threshold itself counts as reached."""
    assert due(**below) is None
    assert due(**at) is reason


@pytest.mark.parametrize("is_window_open", [False, True])
def test_nothing_pending_is_never_due(is_window_open: bool) -> None:  # noqa: FBT001
    """However long ago the last checkpoint was: there would be nothing in it."""
    assert due(records=0, size=1 << 30, seconds=1e9, is_window_open=is_window_open) is None


@pytest.mark.parametrize("pending", [{"records": 10**6}, {"size": 1 << 30}, {"seconds": 599.9}])
def test_inside_a_window_only_the_emergency_threshold_fires(pending: dict) -> None:
    """While a batch is taken apart, no other threshold counts."""
    assert due(**pending, is_window_open=True) is None
    assert due(seconds=600, is_window_open=True) is CheckpointReason.EMERGENCY_TIME_OVERRIDE


@pytest.mark.parametrize(
    ("pending", "reason"),
    [
        ({"records": 10**6, "size": 1 << 30, "seconds": 600}, CheckpointReason.EMERGENCY_TIME_OVERRIDE),
        ({"records": 10**6, "size": 1 << 30, "seconds": 599}, CheckpointReason.SEQUENCE_THRESHOLD),
        ({"records": 1, "size": 1 << 30, "seconds": 599}, CheckpointReason.BYTES_THRESHOLD),
    ],
)
def test_the_first_reason_in_order_of_judgement_is_given(pending: dict, reason: CheckpointReason) -> None:
    """Emergency before records before bytes before time."""
    assert due(**pending) is reason
