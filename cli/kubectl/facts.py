"""What `doctor` looks at, as plain values. Pure: `read_*` take the API's JSON, `cli.kubectl.gathering` fetches it.

None stands for what could not be looked at, never for what is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from contract.manifest import parse_stamp
from contract.names import API_VERSION, CONTAINER_WORKER, FailureClass
from controller import ledger
from controller.status import RunStatus, status_fields

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

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.phase in {"Succeeded", "Failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A worker pod."""

    name: str
    created_at: datetime
    node: str = ""
    """Empty = not placed yet."""
    gates: tuple[str, ...] = ()
    """Scheduling gates: its queue has not admitted it yet."""
    is_refused_by_scheduler: bool = False
    scheduler_message: str = ""
    is_running: bool = False
    has_ended: bool = False
    image: str = ""
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
    denied: tuple[str, ...] = ()
    """What the user may not do, of what the plug-in's commands need: `patch inferenceruns`."""
    unseen: tuple[str, ...] = ()
    """What could not be looked at, and why."""


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
    return Deployment(
        namespace=found["metadata"]["namespace"],
        name=found["metadata"]["name"],
        wanted=int((found.get("spec") or {}).get("replicas") or 0),
        ready=int((found.get("status") or {}).get("readyReplicas") or 0),
    )


def read_run(found: Mapping[str, Any]) -> Run:
    """From the resource, whatever a user has written into it."""
    metadata, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    workers, capacity = spec.get("workers") or {}, (spec.get("workers") or {}).get("capacity") or {}
    counts, shards = status.get("workers") or {}, status.get("shards") or {}
    progress, restarts = status.get("progress") or {}, status.get("restarts") or {}
    return Run(
        name=metadata["name"],
        namespace=metadata["namespace"],
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
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
        probe_at=ledger.from_status(status).memory.breaker.retry_at,
    )


def read_pod(found: Mapping[str, Any]) -> Pod:
    """From a worker pod."""
    metadata, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    scheduled: Mapping[str, Any] = next(
        (item for item in status.get("conditions") or [] if item.get("type") == "PodScheduled"), {}
    )
    states = [
        item.get("state") or {}
        for item in (*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or []))
        if item.get("name") == CONTAINER_WORKER or item in (status.get("initContainerStatuses") or [])
    ]
    waiting: Mapping[str, Any] = next((item["waiting"] for item in states if item.get("waiting")), {})
    worker: Mapping[str, Any] = next(
        (item for item in spec.get("containers") or [] if item.get("name") == CONTAINER_WORKER), {}
    )
    is_refused = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    return Pod(
        name=metadata["name"],
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        node=spec.get("nodeName") or "",
        gates=tuple(item.get("name") or "" for item in spec.get("schedulingGates") or []),
        is_refused_by_scheduler=is_refused,
        scheduler_message=(scheduled.get("message") or "") if is_refused else "",
        is_running=any("running" in item for item in states),
        has_ended=status.get("phase") in {"Succeeded", "Failed"} or any(item.get("terminated") for item in states[-1:]),
        image=worker.get("image") or "",
        waiting_reason=waiting.get("reason") or "",
        waiting_message=waiting.get("message") or "",
        deletion_at=_instant(metadata.get("deletionTimestamp")),
        required_labels=tuple(_required_labels(spec)),
    )


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
