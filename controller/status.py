"""`status` of a run: typed, counted from the manifests, and written as the resource wants it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from contract.manifest import ShardManifest, ShardStatus
from contract.names import FailureClass, Phase
from contract.plan import Plan
from contract.ranges import count
from controller.codec import to_fields
from controller.conditions import Condition
from controller.failure_policy import FREE
from controller.memory import FailureNote, RunMemory, Sample
from controller.observed import Observed

_EVICTED = FailureClass.SPOT_EVICTION


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
    """Over the last minutes; of a run that is over, from the start of its first checkpoint to its last commit."""
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
class CheckpointStatus:
    """How often workers that start now write checkpoints, and why. Texts, because the API conventions forbid floats."""

    every_s: str = ""
    evictions_per_hour: str = ""
    cost_s: str = ""


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
    checkpoint: CheckpointStatus = field(default_factory=CheckpointStatus)
    last_failures: tuple[FailureNote, ...] = ()


def status_fields(status: RunStatus) -> dict[str, Any]:
    """`status` as the resource holds it."""
    fields: dict[str, Any] = to_fields(status)
    fields["restarts"]["byClass"] = dict(status.restarts.by_class)
    for note in fields["lastFailures"]:
        note["class"] = note.pop("failureClass")
    return fields


def sample(plan: Plan, manifests: Mapping[int, ShardManifest], *, now: datetime) -> Sample:
    """How far the run is: settled records, and bytes of input behind us."""
    num_bytes = 0
    for shard in plan.shards:
        found = manifests.get(shard.shard)
        if found is not None:
            size = shard.end - shard.start
            num_bytes += size if found.status is ShardStatus.COMPLETE else min(found.bytes_done, size)
    return Sample(at=now, records=sum(count(found.settled) for found in manifests.values()), bytes=num_bytes)


def progress(latest: Sample, samples: tuple[Sample, ...], *, total_bytes: int) -> Progress:
    """Progress, with the rate since the oldest sample that is kept."""
    since = samples[0] if samples else latest
    return _progress(latest, since, elapsed_s=(latest.at - since.at).total_seconds(), total_bytes=total_bytes)


def final_progress(latest: Sample, manifests: Mapping[int, ShardManifest], *, total_bytes: int) -> Progress:
    """Progress of a run that is over, with the rate of all its work: it stays what it is while workers still end.

    From the start of the first checkpoint to the last commit, pauses included. Nothing is left to do, so the time left is
    none or unknown.
    """
    checkpoints = [item for found in manifests.values() for item in found.checkpoints]
    begins = [item.created_at - timedelta(seconds=item.seconds) for item in checkpoints]
    elapsed_s = (max(item.created_at for item in checkpoints) - min(begins)).total_seconds() if checkpoints else 0.0
    found = _progress(latest, replace(latest, records=0, bytes=0), elapsed_s=elapsed_s, total_bytes=total_bytes)
    return replace(found, eta_s=0 if latest.bytes >= total_bytes else None)


def _progress(latest: Sample, since: Sample, *, elapsed_s: float, total_bytes: int) -> Progress:
    records_per_s = max(0, latest.records - since.records) / elapsed_s if elapsed_s else 0.0
    bytes_per_s = max(0, latest.bytes - since.bytes) / elapsed_s if elapsed_s else 0.0
    # Cut, not rounded: 100.0 is said of nothing less.
    percent = 1000 * latest.bytes // total_bytes / 10 if total_bytes else 100.0
    return Progress(
        records=latest.records,
        bytes=latest.bytes,
        total_bytes=total_bytes,
        percent=f"{percent:.1f}",
        records_per_second=f"{records_per_s:.3g}" if records_per_s < 100 else f"{records_per_s:.0f}",
        eta_s=round((total_bytes - latest.bytes) / bytes_per_s) if bytes_per_s else None,
    )


def shard_counts(plan: Plan, manifests: Mapping[int, ShardManifest]) -> ShardCounts:
    """Shards by where they stand."""
    statuses = [found.status for found in manifests.values()]
    return ShardCounts(
        total=len(plan.shards),
        complete=statuses.count(ShardStatus.COMPLETE),
        running=statuses.count(ShardStatus.RUNNING),
        failed=statuses.count(ShardStatus.FAILED),
    )


def restart_counts(observed: Observed, memory: RunMemory) -> RestartCounts:
    """Ended attempts of all shards, and ended workers that held none.

    A worker that drains gives its shard back as an evicted one. It counts once it has ended, as what that was judged: so no
    count rises and falls again.
    """
    manifests = observed.manifests.values()
    by_class = Counter(item.failure_class.value for item in memory.shardless)
    for pairs in (memory.restarts_by_class, memory.not_evicted, *(found.restarts.by_class for found in manifests)):
        by_class.update(dict(pairs))
    # One that has been judged, and that a late look shows alive, stays counted.
    draining = {worker.uid for worker in observed.workers if worker.is_live}.difference(memory.judged)
    evicted = (item.uid for found in manifests for item in found.attempts if item.failure_class is _EVICTED)
    num_draining = sum(uid in draining for uid in evicted)
    by_class[_EVICTED.value] -= num_draining + sum(number for _, number in memory.not_evicted)
    by_class = +by_class  # without what is zero
    return RestartCounts(
        total=sum(by_class.values()),
        counted=sum(number for name, number in by_class.items() if FailureClass(name) not in FREE),
        by_class=dict(sorted(by_class.items())),
    )


def goodput(observed: Observed, memory: RunMemory, *, now: datetime) -> float:
    """Share of the held GPU seconds that ended in committed checkpoints, 0 to 1; 0 before the first.

    Held is the larger of two lower bounds: how long shards were held, by their manifests (an earlier controller's time
    included), and how long workers lived, by our own count (loading the model included).
    """
    manifests = observed.manifests.values()
    useful_s = sum(item.seconds for found in manifests for item in found.checkpoints)
    by_shards_s, by_workers_s = 0.0, memory.worker_seconds
    for found in manifests:
        by_shards_s += sum(item.held_seconds or 0.0 for item in found.attempts)
        if found.claimed_at is not None and found.status is ShardStatus.RUNNING:
            by_shards_s += (now - found.claimed_at).total_seconds()
        elif found.claimed_at is not None and found.status is ShardStatus.COMPLETE and found.checkpoints:
            by_shards_s += max(0.0, (found.checkpoints[-1].created_at - found.claimed_at).total_seconds())
    for worker in observed.workers:
        if worker.is_live and worker.started_at is not None:
            by_workers_s += (now - worker.started_at).total_seconds()
    held_s = max(by_shards_s, by_workers_s)
    return min(1.0, useful_s / held_s) if held_s else 0.0
