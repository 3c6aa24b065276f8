"""On-demand capacity for places that spot capacity does not come for. Pure.

A place whose pod has waited for a spot node for longer than `capacity.onDemandAfterPendingSeconds` gets its next pod on
demand. Once one of its pods runs, the place prefers spot again: what is dear is taken for one pod at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from controller.api import Capacity, InferenceRun
from controller.pods import PodFacts


def impatient(
    run: InferenceRun, pods: Iterable[PodFacts], on_demand: Iterable[int], *, now: datetime
) -> tuple[PodFacts, ...]:
    """Pods that have waited for spot capacity for too long.

    Args:
        run: the run.
        pods: its pods.
        on_demand: places that are granted on-demand capacity already.
        now: the time.
    """
    capacity = run.spec.workers.capacity
    limit_s = capacity.on_demand_after_pending_s
    if limit_s is None or capacity.prefer is not Capacity.SPOT:
        return ()
    granted = set(on_demand)
    return tuple(
        pod
        for pod in pods
        if pod.slot >= 0
        and pod.slot not in granted
        and not (pod.node or pod.is_deleted or pod.has_ended or pod.is_gated)
        and pod.deletion_at is None
        and pod.created_at is not None
        and (now - pod.created_at).total_seconds() >= limit_s
    )


def granted(on_demand: Iterable[int], pods: Iterable[PodFacts], waiting: Iterable[PodFacts]) -> tuple[int, ...]:
    """Places whose next pod is started on demand.

    Args:
        on_demand: places granted so far.
        pods: all pods of the run.
        waiting: those that are impatient now.
    """
    served = {pod.slot for pod in pods if pod.is_running}
    return tuple(sorted({*on_demand, *(pod.slot for pod in waiting)} - served))
