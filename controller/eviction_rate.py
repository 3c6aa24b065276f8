"""How often a worker is taken away: evictions for each hour of worker time, the latest hours weighing most. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

HALF_LIFE_H = 2.0
"""What was seen so long ago counts half. Spot markets turn within hours."""
PRIOR_EVICTIONS = 1.0
PRIOR_WORKER_HOURS = 2.0
"""What is assumed before anything has been seen: one eviction in two hours, about the mean of published traces of spot GPUs
(1.7 to 5.1 h). It also keeps a single early eviction from looking like a rate."""

STEP_S = 15.0
"""Time is added in steps of so much at least: each changes the memory of the run, and so is a write to the API server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionRate:
    """What has been seen; `EvictionRate()` has seen nothing."""

    as_of: datetime | None = None
    evictions: float = 0.0
    worker_hours: float = 0.0

    @property
    def per_hour(self) -> float:
        """Evictions of one worker in an hour."""
        return (self.evictions + PRIOR_EVICTIONS) / (self.worker_hours + PRIOR_WORKER_HOURS)


def with_time(rate: EvictionRate, *, num_workers: int, now: datetime) -> EvictionRate:
    """The rate at about `now`: what it knew has faded, and `num_workers` have been exposed since."""
    if rate.as_of is None:
        return replace(rate, as_of=now)
    elapsed_s = (now - rate.as_of).total_seconds()
    if 0 <= elapsed_s < STEP_S:
        return rate
    hours = max(0.0, elapsed_s) / 3600
    fading = 0.5 ** (hours / HALF_LIFE_H)
    return EvictionRate(
        as_of=now,
        evictions=rate.evictions * fading,
        worker_hours=rate.worker_hours * fading + num_workers * hours,
    )


def with_eviction(rate: EvictionRate) -> EvictionRate:
    """The rate once a worker has been taken away."""
    return replace(rate, evictions=rate.evictions + 1)
