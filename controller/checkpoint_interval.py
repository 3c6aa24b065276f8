"""How often to write a checkpoint, from how often workers are taken away and what a checkpoint costs. Pure.

Young's interval, `sqrt(2 * cost * time between evictions)`, makes what is lost to evictions equal to what is spent on
checkpoints; the optimum is flat, so rough figures do. Examples: at a cost of 50 ms, a worker that is evicted every two
hours writes each 27 s, one that is evicted every quarter of an hour each 10 s.

Source: J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974), 530-531.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

from contract.manifest import ShardManifest
from contract.settings import CheckpointSettings

MIN_S = 10.0
"""Below this the many small objects cost their readers more than evictions cost the run."""
MAX_S = 120.0
"""Above this a worker that is killed without notice loses minutes, though the mean says otherwise."""
MIN_COST_S = 0.05
"""What serialising takes from the launch loop, stall or none: 25 to 110 ms at 64 MiB, measured on two cores."""
CHECKPOINTS_LOOKED_AT = 20
"""The latest of all shards, of each shard at most four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCost:
    """What checkpoints have cost lately."""

    stall_s: float = MIN_COST_S
    """Taken from the model by each."""
    write_s: float = 0.0
    """From serialised to uploaded, beside the model's work."""


def measured_cost(manifests: Iterable[ShardManifest]) -> CheckpointCost:
    """Means over the latest checkpoints of all shards."""
    latest = heapq.nlargest(
        CHECKPOINTS_LOOKED_AT,
        (item for found in manifests for item in found.checkpoints[-4:]),
        key=lambda item: item.created_at,
    )
    if not latest:
        return CheckpointCost()
    return CheckpointCost(
        stall_s=MIN_COST_S + sum(item.stall_seconds for item in latest) / len(latest),
        write_s=sum(item.write_seconds for item in latest) / len(latest),
    )


def interval_s(settings: CheckpointSettings, *, evictions_per_hour: float, cost: CheckpointCost) -> float:
    """Whole seconds between checkpoints.

    Never so short that one upload meets the next (twice the time it takes), and never so long that the emergency
    threshold, which is the user's, would come first.

    Args:
        settings: of the run; its everySeconds is replaced.
        evictions_per_hour: of one worker, above 0.
        cost: of one checkpoint.
    """
    best_s = math.sqrt(2 * cost.stall_s * 3600 / evictions_per_hour)
    lower_s = max(MIN_S, 2 * cost.write_s)
    return float(max(1, round(min(max(best_s, lower_s), MAX_S, settings.emergency_seconds / 2))))
