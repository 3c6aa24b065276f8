"""What a reconcile sees: manifests, workers and why they ended. Frozen values, filled at the edges. Pure.

A worker is a pod or a local process; the planner cannot tell them apart. Kubernetes facts that a process does not have
stay at their defaults, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from contract.flight import Flight
from contract.manifest import ShardManifest


class WorkerState(StrEnum):
    """Where a worker stands."""

    STARTING = "starting"
    """Created; not yet running. A pod may wait here for capacity as long as it takes: that is not a failure."""
    RUNNING = "running"
    DRAINING = "draining"
    """Asked to stop, not yet ended. Keeps its slot. A pod that cannot end because its node is gone is ENDED instead."""
    ENDED = "ended"
    """It does nothing any more, or never will (its image cannot be pulled): `evidence` says why."""


class NodeState(StrEnum):
    """The node of an ended worker, at that time."""

    UNKNOWN = "unknown"
    READY = "ready"
    NOT_READY = "notReady"
    """NotReady, unreachable, or tainted so by the node controller."""
    TERMINATING = "terminating"
    """Tainted or annotated for shutdown, interruption or removal."""
    GONE = "gone"


class Intent(StrEnum):
    """Why we stopped a worker. Recorded before the signal is sent, and handed back as evidence."""

    SCALE_DOWN = "scaleDown"
    SUSPENDED = "suspended"
    RUN_ENDED = "runEnded"
    CHANGES_CAPACITY = "changesCapacity"
    """Its place goes over from spot capacity to on-demand, or back."""
    AVOIDS_IN_VAIN = "avoidsInVain"
    """It waits for a node, and keeps away from one that need not be avoided any more."""
    CIRCUIT_OPEN = "circuitOpen"
    COORDINATOR_STOPPED = "coordinatorStopped"
    """Ctrl-C, or the coordinator ends for another reason; the planner never gives it."""
    ATTEMPT_TIMEOUT = "attemptTimeout"
    """It held one shard for longer than workers.attemptTimeoutSeconds. Charged, unlike all others."""
    STALLED = "stalled"
    """It held a shard without a commit for so long that its own no-progress timeout must have failed. Charged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything known about the end of a worker. What was not seen stays at its default."""

    exit_code: int | None = None
    """0-255 as reported; None = unknown, or ended by `signal`."""
    signal: int | None = None
    """Signal that ended a local process (9 = SIGKILL); the same as exit code 128 + signal."""
    container_reason: str = ""
    """`state.terminated.reason`: OOMKilled, Error, ContainerStatusUnknown."""
    waiting_reason: str = ""
    """`state.waiting.reason` of a container that cannot start: ImagePullBackOff."""
    pod_reason: str = ""
    """`status.reason`: Evicted, UnexpectedAdmissionError, NodeShutdown."""
    disruption_reason: str = ""
    """Reason of the pod's DisruptionTarget condition; empty = no such condition."""
    messages: tuple[str, ...] = ()
    """Pod, container and waiting messages, the tail of the log: texts to search."""
    intent: Intent | None = None
    """Set when it was us who stopped it."""
    has_termination_target: bool = False
    """Kueue or JobSet asked for its end (condition TerminationTarget)."""
    has_deletion_timestamp: bool = False
    """Somebody deleted the pod."""
    has_started: bool = True
    """Whether a container ever ran; False for pods refused by the node."""
    is_vanished: bool = False
    """The object or process is not there any more, and nobody saw it end."""
    is_spot_node: bool = False
    node_state: NodeState = NodeState.UNKNOWN
    is_oom_killed: bool = False
    """The kernel's own word: cgroup `oom_kill` counted up, or the kernel log names the process."""
    is_device_unhealthy: bool = False
    """The device plugin or node condition reports the GPU as unhealthy."""
    flight: Flight | None = None
    """What its termination message said; None = none, or not ours."""
    ran_s: float | None = None
    """Seconds between its start and its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker as observed."""

    name: str
    uid: str
    """Unique for ever; equals `owner.uid` in the manifests it holds."""
    slot: int
    attempt: int
    node: str
    """Empty = not placed yet."""
    state: WorkerState
    started_at: datetime | None = None
    """When it began to hold its GPU; None = not yet."""
    waits_for: str = ""
    """Why it has not started yet, as scheduler or kubelet say; empty = it runs, or nobody has said."""
    is_on_demand: bool = False
    """Whether it was started on capacity that is not taken away, although the run prefers spot."""
    avoids: tuple[str, ...] = ()
    """Nodes that it keeps away from because their breaker was open when it was made."""
    evidence: Evidence | None = None
    """Set when ended."""

    @property
    def is_live(self) -> bool:
        """Whether it may still write."""
        return self.state is not WorkerState.ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One look at the world."""

    manifests: Mapping[int, ShardManifest] = field(default_factory=dict)
    """By shard; a shard that is absent was never claimed."""
    workers: tuple[WorkerView, ...] = ()
    """All workers of the run that still exist, ended ones included."""
    is_complete: bool = False
    """The workers were listed afresh and *after* the manifests were read: then an owner who is not in the list is gone.
    The other order would take a worker that started in between for a dead one. False judges nobody as vanished."""
    is_finalized: bool = False
    """index.json and _SUCCESS are there."""
