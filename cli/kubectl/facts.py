"""What `doctor` looks at, as plain values. Pure: `read_*` take the API's JSON, `cli.kubectl.gathering` fetches it.

None stands for what could not be looked at, never for what is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from contract.errors import Corrupt
from contract.logs import STORE_BACK, STORE_SILENT
from contract.manifest import parse_stamp
from contract.names import API_VERSION, CONTAINER_WORKER, FailureClass
from controller import ledger, pods
from controller.memory import RunMemory
from controller.status import RunStatus, status_fields

IDLE_S = 30.0
"""A worker that has run for so long has read the plan and taken a shard, if there is one to take."""
LISTEN_S = 10.0
"""One that has run for so long may have said by now that its store is silent."""

SPEC_FIELDS = frozenset(
    {
        "input",
        "output",
        "model",
        "workers",
        "checkpoint",
        "failurePolicy",
        "resume",
        "suspend",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    }
)
"""Of a definition that is not older than this program."""
STATUS_FIELDS = frozenset({*status_fields(RunStatus()), "memory"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The custom resource definition."""

    is_served: bool = True
    """Whether the API server serves this version of the kind."""
    missing: frozenset[str] = frozenset()
    """Fields (`spec.x`, `status.y`) that this program knows and the definition does not: the server drops them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who leads among the controllers."""

    namespace: str
    name: str
    holder: str
    """Empty = given up."""
    renewed_at: datetime | None
    duration_s: float

    def is_alive(self, now: datetime, *, tolerance_s: float = 60.0) -> bool:
        """Whether its holder still renews it. Two clocks are compared, so there is a tolerance."""
        if not self.holder or self.renewed_at is None:
            return False
        return (now - self.renewed_at).total_seconds() <= self.duration_s + tolerance_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A Deployment of controllers."""

    namespace: str
    name: str
    wanted: int
    ready: int
    problem: str = ""
    """Why its pods cannot be made, in the API server's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerPod:
    """A pod of a controller that is not ready."""

    namespace: str
    name: str
    image: str = ""
    """Of the container that is told of."""
    waiting_reason: str = ""
    waiting_message: str = ""
    last_end: str = ""
    """How its container ended last: exit code, reason, message; empty = it has not."""
    unscheduled: str = ""
    """Why no node takes it, in the scheduler's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One of the run's conditions."""

    status: str
    reason: str
    message: str
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One of the last failures."""

    at: datetime | None
    pod: str
    node: str
    failure_class: str
    evidence: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The resource."""

    name: str
    namespace: str
    created_at: datetime
    output_uri: str = ""
    generation: int = 1
    observed_generation: int | None = None
    """None = nobody has written a status."""
    is_deleting: bool = False
    is_suspended: bool = False
    count: int = 1
    """Workers wanted by the spec."""
    gpu_resource: str = "nvidia.com/gpu"
    gpus_per_worker: int = 1
    provider: str = "none"
    prefer: str = "spot"
    queue: str = ""
    """Kueue's queue name; empty = none."""
    phase: str = ""
    message: str = ""
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    desired: int = 0
    active: int = 0
    ready: int = 0
    num_shards: int = 0
    num_failed_shards: int = 0
    num_quarantined: int = 0
    num_restarts: int = 0
    by_class: Mapping[str, int] = field(default_factory=dict)
    goodput: float = 0.0
    percent: str = "0.0"
    records_per_second: str = "0"
    eta_s: int | None = None
    last_failures: tuple[Failure, ...] = ()
    """The newest at the end."""
    probe_at: datetime | None = None
    """When a run whose breaker is open tries one worker; None = it is closed."""
    num_running_shards: int = 0
    begun_at: datetime | None = None
    """When it was planned, or somebody stepped in last: resumed it, changed its spec, had it retried. None = unknown."""
    failing_since: datetime | None = None
    """First failure that counts and was followed by no progress; None = there is none."""
    idle: Mapping[str, datetime] = field(default_factory=dict)
    """Workers that run and hold no shard: since when the controller has seen them so, by the pods' uids."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.phase in {"Succeeded", "Failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A worker pod."""

    name: str
    created_at: datetime
    uid: str = ""
    node: str = ""
    """Empty = not placed yet."""
    gates: tuple[str, ...] = ()
    """Scheduling gates: its queue has not admitted it yet."""
    is_refused_by_scheduler: bool = False
    scheduler_message: str = ""
    is_running: bool = False
    """Whether the worker container runs."""
    running_init: str = ""
    """Name of the init container that keeps the worker waiting; empty = none runs."""
    has_ended: bool = False
    image: str = ""
    """Of the container that waits, else of the worker."""
    waiting_reason: str = ""
    waiting_message: str = ""
    deletion_at: datetime | None = None
    required_labels: tuple[tuple[str, str], ...] = ()
    """Labels that its node must have, as far as single values are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node."""

    name: str
    is_ready: bool = True
    is_cordoned: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[str, ...] = ()
    """`key=value:effect`"""
    allocatable: Mapping[str, str] = field(default_factory=dict)

    def gpus(self, resource: str) -> int:
        """How many of a device it offers."""
        text = self.allocatable.get(resource, "0")
        return int(text) if text.isdecimal() else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that has been said of the run or of one of its pods."""

    of: str
    """Name of the object."""
    reason: str
    message: str
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldShard:
    """A shard with an owner."""

    shard: int
    pod: str
    node: str
    silent_s: float
    """Since its claim or last commit."""
    is_stale: bool
    """Whether that is too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """What a look at the store with the user's own credentials has shown."""

    problem: str = ""
    """Why it could not be used; empty when it could."""
    is_in_pods: bool = False
    """It is a path, which the cluster's pods may have and this machine has not."""
    is_unsuitable: bool = False
    """It ignores conditions on writes: the problem is the store's, whoever asks."""
    input_problem: str = ""
    """Why the input cannot be listed; empty when it can, or was not looked at."""
    skew_s: float | None = None
    """By how much the store's clock is ahead of ours; None = not measured."""
    held: tuple[HeldShard, ...] = ()
    num_waiting_shards: int = 0
    """Pending, and not to be claimed before some instant."""
    next_claim_at: datetime | None = None
    """The first of these instants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """What a worker's log says last of a store that does not answer."""

    pod: str
    store: str
    """URI."""
    endpoint: str
    silent_s: float
    """For how long, when it said so."""
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that was seen."""

    now: datetime
    definition: Definition | None = None
    leases: tuple[Lease, ...] | None = None
    deployments: tuple[Deployment, ...] | None = None
    run: Run | None = None
    """None = the installation alone is looked at."""
    pods: tuple[Pod, ...] | None = None
    nodes: tuple[Node, ...] | None = None
    events: tuple[Event, ...] | None = None
    store: Store | None = None
    controller_pods: tuple[ControllerPod, ...] = ()
    """Those that are not ready, as far as they were looked at."""
    silences: tuple[Silence, ...] = ()
    """Of workers without a shard."""
    denied: tuple[str, ...] = ()
    """What the user may not do, of what the plug-in's commands need: `patch inferenceruns`."""
    unseen: tuple[str, ...] = ()
    """What could not be looked at, and why."""


def without_shard(run: Run, pods: Sequence[Pod], now: datetime) -> dict[Pod, float]:
    """Workers that have held no shard for LISTEN_S, and for how many seconds, though shards are free. Pure."""
    if run.desired <= run.num_running_shards:  # the controller wants workers only for shards that are held or free
        return {}
    idle_s = {
        pod: (now - run.idle[pod.uid]).total_seconds()
        for pod in pods
        if pod.uid in run.idle and pod.is_running and pod.deletion_at is None
    }
    return {pod: seconds for pod, seconds in idle_s.items() if seconds >= LISTEN_S}


def read_definition(found: Mapping[str, Any]) -> Definition:
    """From the CustomResourceDefinition."""
    versions = (found.get("spec") or {}).get("versions") or []
    version = next((item for item in versions if item.get("name") == API_VERSION and item.get("served")), None)
    conditions = {item["type"]: item["status"] for item in (found.get("status") or {}).get("conditions") or []}
    if version is None or conditions.get("Established") != "True":
        return Definition(is_served=False)
    schema = ((version.get("schema") or {}).get("openAPIV3Schema") or {}).get("properties") or {}
    known = {part: ((schema.get(part) or {}).get("properties") or {}).keys() for part in ("spec", "status")}
    wanted = {f"spec.{name}" for name in SPEC_FIELDS} | {f"status.{name}" for name in STATUS_FIELDS}
    return Definition(missing=frozenset(wanted - {f"{part}.{name}" for part in known for name in known[part]}))


def read_lease(found: Mapping[str, Any]) -> Lease:
    """From a Lease."""
    spec = found.get("spec") or {}
    return Lease(
        namespace=found["metadata"]["namespace"],
        name=found["metadata"]["name"],
        holder=spec.get("holderIdentity") or "",
        renewed_at=_instant(spec.get("renewTime")),
        duration_s=float(spec.get("leaseDurationSeconds") or 15),
    )


def read_deployment(found: Mapping[str, Any]) -> Deployment:
    """From a Deployment."""
    status = found.get("status") or {}
    conditions = {item.get("type"): item for item in status.get("conditions") or []}
    failure = conditions.get("ReplicaFailure") or {}
    return Deployment(
        namespace=found["metadata"]["namespace"],
        name=found["metadata"]["name"],
        wanted=int((found.get("spec") or {}).get("replicas") or 0),
        ready=int(status.get("readyReplicas") or 0),
        problem=(failure.get("message") or "") if failure.get("status") == "True" else "",
    )


def read_controller_pod(found: Mapping[str, Any]) -> ControllerPod | None:
    """From a pod of a controller; None when it is ready, or on its way out."""
    metadata, status = found["metadata"], found.get("status") or {}
    conditions = {item.get("type"): item for item in status.get("conditions") or []}
    if (conditions.get("Ready") or {}).get("status") == "True" or metadata.get("deletionTimestamp"):
        return None
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    worst = next(
        (item for item in statuses if (item.get("state") or {}).get("waiting")), statuses[-1] if statuses else {}
    )
    waiting = (worst.get("state") or {}).get("waiting") or {}
    ended = (worst.get("state") or {}).get("terminated") or (worst.get("lastState") or {}).get("terminated") or {}
    scheduled = conditions.get("PodScheduled") or {}
    said = (ended.get("message") or "").splitlines()[-1:]
    words = (f"exit {ended.get('exitCode')}", ended.get("reason"), *map(_said, said))
    return ControllerPod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        image=worst.get("image") or "",
        waiting_reason=waiting.get("reason") or "",
        waiting_message=waiting.get("message") or "",
        last_end=", ".join(filter(None, words)) if ended else "",
        unscheduled=(scheduled.get("message") or "") if scheduled.get("status") == "False" else "",
    )


def _said(line: str) -> str:
    """A line of a controller's log as people read it; any other line as it is."""
    try:
        fields = json.loads(line)
        return ": ".join(filter(None, [fields["message"], fields.get("detail")]))
    except (ValueError, TypeError, LookupError):
        return line


def read_run(found: Mapping[str, Any]) -> Run:
    """From the resource, whatever a user has written into it."""
    metadata, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    workers, capacity = spec.get("workers") or {}, (spec.get("workers") or {}).get("capacity") or {}
    counts, shards = status.get("workers") or {}, status.get("shards") or {}
    progress, restarts = status.get("progress") or {}, status.get("restarts") or {}
    created_at = datetime.fromisoformat(metadata["creationTimestamp"])
    try:
        memory = ledger.read(status).memory
        begun_at, failing_since = memory.started_at, min((item.at for item in memory.deaths), default=None)
    except Corrupt:  # of another version, or damaged: any failure may be one of now
        memory, begun_at, failing_since = RunMemory(), None, created_at
    return Run(
        name=metadata["name"],
        namespace=metadata["namespace"],
        created_at=created_at,
        output_uri=(spec.get("output") or {}).get("uri") or "",
        generation=int(metadata.get("generation") or 1),
        observed_generation=status.get("observedGeneration") if status else None,
        is_deleting=bool(metadata.get("deletionTimestamp")),
        is_suspended=bool(spec.get("suspend")),
        count=int(workers.get("count", 1)),
        gpu_resource=workers.get("gpuResource") or "nvidia.com/gpu",
        gpus_per_worker=int(workers.get("gpusPerWorker", 1)),
        provider=capacity.get("provider") or "none",
        prefer=capacity.get("prefer") or "onDemand",
        queue=(metadata.get("labels") or {}).get("kueue.x-k8s.io/queue-name") or "",
        phase=status.get("phase") or "",
        message=status.get("message") or "",
        conditions={
            item["type"]: Condition(
                status=item["status"],
                reason=item.get("reason") or "",
                message=item.get("message") or "",
                at=_instant(item.get("lastTransitionTime")),
            )
            for item in status.get("conditions") or []
        },
        desired=int(counts.get("desired") or 0),
        active=int(counts.get("active") or 0),
        ready=int(counts.get("ready") or 0),
        num_shards=int(shards.get("total") or 0),
        num_failed_shards=int(shards.get("failed") or 0),
        num_quarantined=int(status.get("quarantined") or 0),
        num_restarts=int(restarts.get("total") or 0),
        by_class=dict(restarts.get("byClass") or {}),
        goodput=float(status.get("goodput") or 0),
        percent=progress.get("percent") or "0.0",
        records_per_second=progress.get("recordsPerSecond") or "0",
        eta_s=progress.get("etaSeconds"),
        last_failures=tuple(
            Failure(
                at=_instant(item.get("time")),
                pod=item.get("pod") or "",
                node=item.get("node") or "",
                failure_class=item.get("class") or FailureClass.TRANSIENT.value,
                evidence=item.get("evidence") or "",
                advice=item.get("advice") or "",
            )
            for item in status.get("lastFailures") or []
        ),
        probe_at=memory.breaker.retry_at,
        num_running_shards=int(shards.get("running") or 0),
        begun_at=begun_at,
        failing_since=failing_since,
        idle={item.uid: item.since for item in memory.idle},
    )


def read_pod(found: Mapping[str, Any]) -> Pod:
    """From a worker pod."""
    metadata, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    scheduled: Mapping[str, Any] = next(
        (item for item in status.get("conditions") or [] if item.get("type") == "PodScheduled"), {}
    )
    seen = pods.read_pod(found)
    inits = status.get("initContainerStatuses") or []
    # Whichever comes first keeps the others from starting; the worker itself waits for them without a word of its own.
    waiting = next((item.get("name") for item in inits if (item.get("state") or {}).get("waiting")), CONTAINER_WORKER)
    containers = (*(spec.get("initContainers") or []), *(spec.get("containers") or []))
    images = {item.get("name"): item.get("image") or "" for item in containers}
    running = [item.get("name") for item in inits if "running" in (item.get("state") or {})]
    is_refused = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    return Pod(
        name=metadata["name"],
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        uid=seen.uid,
        node=seen.node,
        gates=tuple(item.get("name") or "" for item in spec.get("schedulingGates") or []),
        is_refused_by_scheduler=is_refused,
        scheduler_message=(scheduled.get("message") or "") if is_refused else "",
        is_running=seen.is_running,
        running_init="" if seen.is_running or not running else running[-1],
        has_ended=seen.has_ended,
        image=images.get(waiting) or images.get(CONTAINER_WORKER, ""),
        waiting_reason=seen.waiting_reason,
        waiting_message=seen.waiting_message,
        deletion_at=seen.deletion_at,
        required_labels=tuple(_required_labels(spec)),
    )


def read_silence(pod: str, lines: Iterable[bytes]) -> Silence | None:
    """From a worker's log: the store that does not answer, if that is the last it said of it."""
    found: Silence | None = None
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            continue
        phrase = said.get("message") if isinstance(said, dict) else None
        if phrase == STORE_SILENT:
            found = Silence(
                pod=pod,
                store=str(said.get("store") or ""),
                endpoint=str(said.get("endpoint") or ""),
                silent_s=float(said.get("silent_s") or 0),
                detail=str(said.get("detail") or ""),
            )
        elif phrase == STORE_BACK:
            found = None
    return found


def read_node(found: Mapping[str, Any]) -> Node:
    """From a Node."""
    metadata, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    ready = next((item.get("status") for item in status.get("conditions") or [] if item.get("type") == "Ready"), None)
    return Node(
        name=metadata["name"],
        is_ready=ready == "True",
        is_cordoned=bool(spec.get("unschedulable")),
        labels=dict(metadata.get("labels") or {}),
        taints=tuple(
            f"{item.get('key')}={item.get('value') or ''}:{item.get('effect')}" for item in spec.get("taints") or []
        ),
        allocatable={name: str(value) for name, value in (status.get("allocatable") or {}).items()},
    )


def read_event(found: Mapping[str, Any]) -> Event:
    """From an Event, of either API."""
    series = found.get("series") or {}
    at = series.get("lastObservedTime") or found.get("lastTimestamp") or found.get("eventTime")
    return Event(
        of=(found.get("involvedObject") or {}).get("name") or "",
        reason=found.get("reason") or "",
        message=found.get("message") or "",
        at=_instant(at),
    )


def _required_labels(spec: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Of the node selector, and of an affinity that has one alternative."""
    yield from (spec.get("nodeSelector") or {}).items()
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or []
    for expression in (terms[0].get("matchExpressions") or []) if len(terms) == 1 else []:
        values = expression.get("values") or []
        if expression.get("operator") == "In" and len(values) == 1:
            yield expression["key"], values[0]


def _instant(text: str | None) -> datetime | None:
    return parse_stamp(text or None)
