"""`status` of a run: typed, counted from the manifests, and written as the resource wants it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from contract.names import FailureClass, Phase
from controller.codec import to_fields
from controller.conditions import Condition

LAST_FAILURES_KEPT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the run is."""

    records: int = 0
    """Records in checkpoints or in quarantine."""
    bytes: int = 0
    """Stored bytes of input behind us."""
    total_bytes: int = 0
    percent: str = "0.0"
    """Of bytes. Text, because the API conventions forbid floats."""
    records_per_second: str = "0"
    """Over the last minutes."""
    eta_s: int | None = None
    """Seconds left at this rate; None = unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCounts:
    """Shards by where they stand; the rest of `total` is pending."""

    total: int = 0
    complete: int = 0
    running: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCounts:
    """Workers."""

    desired: int = 0
    active: int = 0
    """Exist and have not ended."""
    ready: int = 0
    """Run, and are not asked to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartCounts:
    """Ended attempts: all, and those that count."""

    total: int = 0
    counted: int = 0
    by_class: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureNote:
    """One of the last failures, for people."""

    time: datetime
    pod: str
    node: str
    failure_class: FailureClass
    evidence: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """All of `status`."""

    phase: Phase = Phase.PENDING
    message: str = ""
    """Why this phase, in a sentence; empty when it goes without saying."""
    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()
    progress: Progress = field(default_factory=Progress)
    shards: ShardCounts = field(default_factory=ShardCounts)
    workers: WorkerCounts = field(default_factory=WorkerCounts)
    restarts: RestartCounts = field(default_factory=RestartCounts)
    quarantined: int = 0
    goodput: str = "0.00"
    """Share of the held GPU seconds that ended in committed checkpoints."""
    last_failures: tuple[FailureNote, ...] = ()


def status_fields(status: RunStatus) -> dict[str, Any]:
    """`status` as the resource holds it."""
    fields: dict[str, Any] = to_fields(status)
    fields["restarts"]["byClass"] = dict(status.restarts.by_class)
    for note in fields["lastFailures"]:
        note["class"] = note.pop("failureClass")
    return fields
