"""A run's workers as people want to see them: where each is, what it does, how far its shard is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cli.status import RATE_WINDOW_SECONDS, last_commit_at
from contract.manifest import ShardManifest, stamp
from contract.ranges import count
from controller.pods import PodFacts

COLUMNS = ("WORKER", "STATE", "NODE", "SHARD", "DONE", "RECORDS/S", "LAST COMMIT")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """One worker pod, and the shard it holds."""

    pod: str
    slot: int
    state: str
    node: str | None
    shard: int | None = None
    """None = it holds none, or the store was not read."""
    records: int | None = None
    """Settled records of that shard."""
    records_per_s: float | None = None
    """Of its checkpoints in the last minutes; None while there are none."""
    last_commit_at: datetime | None = None

    def to_fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pod": self.pod,
            "slot": self.slot,
            "state": self.state,
            "node": self.node,
            "shard": self.shard,
            "records": self.records,
            "recordsPerSecond": None if self.records_per_s is None else f"{self.records_per_s:.1f}",
            "lastCommitAt": stamp(self.last_commit_at),
        }


def worker_rows(
    pods: Iterable[PodFacts], manifests: Mapping[int, ShardManifest] | None, *, now: datetime
) -> tuple[WorkerRow, ...]:
    """The workers, by slot.

    Args:
        pods: of the run.
        manifests: by shard; None = the store was not read.
        now: the time.
    """
    held = {found.owner.uid: found for found in (manifests or {}).values() if found.owner is not None}
    return tuple(
        _row(pod, held.get(pod.uid), now) for pod in sorted(pods, key=lambda item: (item.slot, item.attempt, item.name))
    )


def state_text(pod: PodFacts) -> str:
    """What a pod does, in a word or two."""
    if pod.has_ended:
        return "ended"
    if pod.deletion_at is not None:
        return "draining"
    if pod.is_running:
        return "running"
    if pod.waiting_reason not in {"", "ContainerCreating", "PodInitializing"}:
        return pod.waiting_reason
    if pod.is_gated:
        return "waits for its queue"
    return "starting" if pod.node else "waits for a node"


def _row(pod: PodFacts, held: ShardManifest | None, now: datetime) -> WorkerRow:
    seen = WorkerRow(pod=pod.name, slot=pod.slot, state=state_text(pod), node=pod.node or None)
    if held is None:
        return seen
    return WorkerRow(
        pod=seen.pod,
        slot=seen.slot,
        state=seen.state,
        node=seen.node,
        shard=held.shard,
        records=count(held.settled),
        records_per_s=_records_per_s(held, now),
        last_commit_at=last_commit_at(held),
    )


def _records_per_s(held: ShardManifest, now: datetime) -> float | None:
    since = now - timedelta(seconds=RATE_WINDOW_SECONDS)
    recent = [item for item in held.checkpoints if item.epoch == held.epoch and item.created_at >= since]
    seconds = sum(item.seconds for item in recent)
    return sum(item.records for item in recent) / seconds if seconds else None
