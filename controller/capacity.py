"""On-demand capacity for a run that prefers spot: when it is taken, for which places, and when spot is tried again. Pure.

It is taken for a place whose pod has waited for a spot node for longer than `onDemandAfterPendingSeconds`; for all places
while evictions come more often than `onDemandAboveEvictionsPerHour`; and for whatever starts while no more than
`onDemandForLastShards` shards are left. Workers that run are left where they are.

It is given up again: a worker that has run on demand for `returnToSpotAfterSeconds` is drained, and its place tries spot
once more. One at a time, and only while nobody waits for a node, so that a market that is still empty costs one worker its
wait and not all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from contract.manifest import ShardManifest
from contract.plan import Plan
from controller.api import Capacity, InferenceRun
from controller.eviction_rate import EvictionRate
from controller.pods import PodFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class OffSpot:
    """What keeps places off spot; kept across restarts of the controller."""

    slots: tuple[int, ...] = ()
    """Places that spot capacity has not come for: their next pod is started on demand."""
    until: datetime | None = None
    """Evictions came too often: every place keeps off until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityChoice:
    """What a look at the pods leads to."""

    off_spot: OffSpot
    eviction_rate: EvictionRate
    """Begun anew once the run returns to spot: what it has seen is about another time."""
    is_tail: bool = False
    """So few shards are left that nothing more is started on spot."""
    impatient: tuple[PodFacts, ...] = ()
    """Pods that have waited for spot capacity for too long: to be stopped."""
    returning: tuple[PodFacts, ...] = ()
    """Pods that have had on-demand capacity for long enough: to be drained."""

    def is_on_demand(self, slot: int) -> bool:
        """Whether a pod that is started now in this place takes on-demand capacity."""
        return self.is_tail or self.off_spot.until is not None or slot in self.off_spot.slots


def choose_capacity(
    run: InferenceRun,
    pods: Collection[PodFacts],
    *,
    off_spot: OffSpot,
    eviction_rate: EvictionRate,
    num_open_shards: int,
    now: datetime,
) -> CapacityChoice:
    """What to start on demand, and whom to stop for the sake of the other capacity. Pure.

    Args:
        run: the run.
        pods: its pods.
        off_spot: as decided last time.
        eviction_rate: of its workers on spot.
        num_open_shards: shards that are not final.
        now: the time.
    """
    capacity = run.spec.workers.capacity
    if capacity.prefer is not Capacity.SPOT:
        return CapacityChoice(off_spot=OffSpot(), eviction_rate=eviction_rate)
    until = off_spot.until
    if until is not None and now >= until:
        until, eviction_rate = None, EvictionRate(as_of=now)
    limit = capacity.on_demand_above_evictions_per_hour
    if until is None and limit is not None and eviction_rate.per_hour > limit:
        until = now + timedelta(seconds=capacity.return_to_spot_after_s)
    is_tail = 0 < num_open_shards <= capacity.on_demand_for_last_shards
    impatient = _impatient(pods, limit_s=capacity.on_demand_after_pending_s, now=now)
    served = {pod.slot for pod in pods if pod.is_running}
    slots = tuple(sorted({*off_spot.slots, *(pod.slot for pod in impatient)} - served))
    is_return_barred = until is not None or is_tail or any(_is_waiting(pod) for pod in pods)
    return CapacityChoice(
        off_spot=replace(off_spot, slots=slots, until=until),
        eviction_rate=eviction_rate,
        is_tail=is_tail,
        impatient=impatient,
        returning=() if is_return_barred else _returning(pods, after_s=capacity.return_to_spot_after_s, now=now),
    )


def num_open_shards(plan: Plan, manifests: Mapping[int, ShardManifest]) -> int:
    """Shards that are not final."""
    return sum(item.shard not in manifests or not manifests[item.shard].is_final for item in plan.shards)


def _impatient(pods: Iterable[PodFacts], *, limit_s: float | None, now: datetime) -> tuple[PodFacts, ...]:
    """Also in places that were granted on-demand capacity: whoever noted that may have died before it stopped the pod."""
    if limit_s is None:
        return ()
    return tuple(
        pod
        for pod in pods
        if pod.slot >= 0
        and not pod.is_on_demand
        and _is_waiting(pod)
        and pod.created_at is not None
        and (now - pod.created_at).total_seconds() >= limit_s
    )


def _is_waiting(pod: PodFacts) -> bool:
    """Whether it waits for a node. One that a queue holds back does not lack capacity."""
    is_going = pod.is_deleted or pod.has_ended or pod.deletion_at is not None
    return not (pod.node or pod.is_gated or is_going)


def _returning(pods: Iterable[PodFacts], *, after_s: float, now: datetime) -> tuple[PodFacts, ...]:
    """The worker that has been on demand for longest, if its time is over and none is leaving already."""
    on_demand = [pod for pod in pods if pod.is_on_demand and pod.slot >= 0 and pod.is_running]
    if any(pod.deletion_at is not None for pod in on_demand):
        return ()
    due = [
        (pod.started_at, pod.slot, pod)
        for pod in on_demand
        if pod.started_at is not None and (now - pod.started_at).total_seconds() >= after_s
    ]
    return (min(due, key=lambda item: item[:2])[2],) if due else ()
