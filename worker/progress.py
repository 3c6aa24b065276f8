"""When to write a checkpoint. Pure.

All thresholds count from the last checkpoint and are looked at when a batch is finished, never inside one. While a batch
is being taken apart to find a bad record the window is open: only the emergency threshold fires there.
"""

from __future__ import annotations

from dataclasses import dataclass

from contract.names import CheckpointReason
from contract.settings import CheckpointSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Finished work that no checkpoint holds yet."""

    num_records: int
    num_bytes: int
    seconds: float
    """Since the last checkpoint, or since the claim."""


def checkpoint_due(
    settings: CheckpointSettings, pending: Pending, *, is_window_open: bool = False
) -> CheckpointReason | None:
    """Why a checkpoint is due now, or None.

    Order of judgement: emergency (the only one inside a window), records, bytes, time.
    """
    if pending.num_records == 0:
        return None
    if pending.seconds >= settings.emergency_seconds:
        return CheckpointReason.EMERGENCY_TIME_OVERRIDE
    if is_window_open:
        return None
    if pending.num_records >= settings.every_records:
        return CheckpointReason.SEQUENCE_THRESHOLD
    if pending.num_bytes >= settings.every_bytes:
        return CheckpointReason.BYTES_THRESHOLD
    if pending.seconds >= settings.every_seconds:
        return CheckpointReason.TIME_THRESHOLD
    return None
