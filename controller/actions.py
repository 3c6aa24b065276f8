"""What a reconcile decides: frozen values that an executor applies in order.

The executor persists `Decision.memory` (and the status) first, then applies the actions one by one and stops at the
first that fails; the next reconcile decides afresh. Each action is harmless when repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from contract.manifest import Attempt, Failure, Hints, Quarantined, ShardManifest
from contract.ranges import Ranges
from contract.transitions import released
from controller.memory import RunMemory
from controller.observed import Intent
from controller.status import RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorker:
    """Create a worker. One that exists under this name and is ours counts as created."""

    name: str
    """`<run>-<slot>-<attempt>`, at most 63 characters."""
    slot: int
    attempt: int
    avoid_nodes: tuple[str, ...] = ()
    """Nodes (sorted) whose breaker is open; an executor with one node may have to ignore it."""
    checkpoint_every_s: float | None = None
    """Time between its checkpoints, adapted to evictions; None = the spec's."""
    memory_bytes: int | None = None
    """Its memory limit: the spec's, or more when a waiting shard needs more; None = the spec sets none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWorker:
    """Record the intent, send SIGTERM, and SIGKILL once the grace period is over. Nothing when it is draining already."""

    name: str
    uid: str
    intent: Intent


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseShard:
    """Take a shard back from an owner that is dead: a conditional put of `applied()` over the *observed* manifest."""

    shard: int
    uid: str
    """Owner that died."""
    epoch: int
    version: int
    """Version of the manifest that this was decided on."""
    attempt: Attempt
    in_flight: Ranges = ()
    quarantined: tuple[Quarantined, ...] = ()
    not_before: datetime | None = None
    hints: Hints | None = None
    failure: Failure | None = None
    streak: int = 0

    def applied(self, current: ShardManifest, *, commit_id: str) -> ShardManifest | None:
        """The manifest to put over `current`, or None when it has moved on: then there is nothing to do but look again."""
        if current.owner is None or (current.owner.uid, current.epoch, current.version) != (
            self.uid,
            self.epoch,
            self.version,
        ):
            return None
        return released(
            current,
            attempt=self.attempt,
            commit_id=commit_id,
            in_flight=self.in_flight,
            quarantined=self.quarantined,
            not_before=self.not_before,
            hints=self.hints,
            failure=self.failure,
            streak=self.streak,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLog:
    """Put the end of an ended worker's log into the store, before it goes with the worker.

    Best effort: a log that cannot be read any more keeps nobody waiting.
    """

    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetWorker:
    """Remove an ended worker (delete the pod, drop the process): all it had to say has been recorded."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalize:
    """Write index.json (`contract.index.build_index` over the observed manifests), then _SUCCESS."""


Action = StartWorker | StopWorker | ReleaseShard | KeepLog | ForgetWorker | Finalize


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The outcome of one reconcile."""

    actions: tuple[Action, ...]
    memory: RunMemory
    status: RunStatus
    requeue_after_s: float | None
    """When to look again though nothing happened; 0 = at once, None = only when something changes."""
