"""Worker pods and their nodes: from what the API shows to what the planner and the failure policy ask. Pure.

`read_pod` and `read_node` keep the few facts that matter, so that a cache of thousands stays small. `worker_view` turns
them into a WorkerView: a pod has ended when its worker container has, when it is gone, when its node is, or when it
waits in vain for an image or a Secret; then it carries the evidence of its end.

Absent fields are normal (a pod that a node refused has no container status) and a field of another type than the API's
counts as absent: whatever an object holds, it gets read, since one that cannot be read would blind the whole watch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from contract import names
from contract.flight import from_text
from contract.manifest import parse_stamp
from controller.failure_policy import classify
from controller.observed import Evidence, Intent, NodeState, WorkerState, WorkerView

PATIENCE = timedelta(seconds=60)
"""How long a placed pod may wait for its image or its container before it counts as one that never starts. The kubelet
tries again by itself in that time: a registry that hiccups must not cost a pod."""

START_PATIENCE = timedelta(minutes=30)
"""How long a placed pod may take until its container runs, though nothing is reported as wrong: images of ten gigabytes take
minutes. A pull or a mount that hangs must not keep its place, and the node's GPU, for ever."""

STUCK = timedelta(minutes=5)
"""How long after its grace period a deleted pod may still be there before it is taken for one that nobody will end."""

STRANGER = -1
"""Slot of a pod that belongs to an earlier resource of this name: it takes nobody's place, and may still hold shards."""

_MAX_DIGITS = 18
"""Of a number in a label: what a 64-bit counter holds."""

_WAITS_IN_VAIN = frozenset(
    {
        "InvalidImageName",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "ImageInspectError",
        "RegistryUnavailable",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "CrashLoopBackOff",
        "SignatureValidationFailed",
        "CreatePodSandboxError",
        "ConfigPodSandboxError",
        "KillPodSandboxError",
        "KillContainerError",
        "PreCreateHookError",
        "PreStartHookError",
        "PostStartHookError",
    }
)

_SPOT_LABELS = frozenset(
    {
        ("cloud.google.com/gke-spot", "true"),
        ("cloud.google.com/gke-preemptible", "true"),
        ("cloud.google.com/gke-provisioning", "spot"),
        ("karpenter.sh/capacity-type", "spot"),
        ("eks.amazonaws.com/capacityType", "SPOT"),
        ("kubernetes.azure.com/scalesetpriority", "spot"),
    }
)
_NOT_READY_TAINTS = frozenset({"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"})
_TERMINATING_TAINTS = frozenset(
    {
        "node.cloudprovider.kubernetes.io/shutdown",
        "node.kubernetes.io/out-of-service",
        "cloud.google.com/impending-node-termination",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        "ToBeDeletedByClusterAutoscaler",
    }
)
_TERMINATING_TAINT_PREFIX = "aws-node-termination-handler/"
_GPU_CONDITION = "AcceleratedHardwareReady"
"""Of the EKS node monitoring agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """One version of a worker pod."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    run_uid: str
    run: str
    """Label: the run's name, cut to 63 characters."""
    slot: int
    attempt: int
    generation: int
    """Of the store, that it works on."""
    node: str
    """Empty = not placed yet."""
    phase: str
    created_at: datetime | None
    placed_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    is_on_demand: bool
    """Whether it was started on demand by a run that prefers spot."""
    is_running: bool
    """Whether the worker container runs."""
    is_gated: bool
    """Held back by a scheduling gate: its queue has not admitted it yet."""
    unscheduled: str
    """Why no node takes it, in the scheduler's words; empty = one does, or the scheduler has not looked yet."""
    deletion_at: datetime | None
    """`metadata.deletionTimestamp`: when its grace period is over."""
    avoids: tuple[str, ...]
    """Nodes that it keeps away from for our sake, not that of its template."""
    waiting_reason: str
    waiting_message: str
    evidence: Evidence
    """What its own status says; `worker_view` adds what is known of the node."""
    is_deleted: bool = False
    """The object is gone; this is the last that was seen of it."""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return (self.namespace, self.name)

    @property
    def has_ended(self) -> bool:
        """Whether its own status says so."""
        is_over = self.evidence.exit_code is not None or self.evidence.signal is not None
        return self.phase in {"Succeeded", "Failed"} or is_over


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node."""

    uid: str
    name: str
    resource_version: str
    state: NodeState
    is_spot: bool
    is_gpu_unhealthy: bool = False
    """A monitoring agent says so of the node's accelerators."""


GONE = NodeFacts(uid="", name="", resource_version="", state=NodeState.GONE, is_spot=False)
"""A node that the API no longer knows, and of which nothing was ever seen."""


def read_pod(pod: Mapping[str, Any]) -> PodFacts:
    """The facts of a pod as the API gives it. Never raises."""
    metadata, spec, status = (_object(pod.get(part)) for part in ("metadata", "spec", "status"))
    labels = _object(metadata.get("labels"))
    statuses = _objects(status.get("containerStatuses"))
    worker: Mapping[str, Any] = next((item for item in statuses if item.get("name") == names.CONTAINER_WORKER), {})
    inits = _objects(status.get("initContainerStatuses"))
    running = _state(worker, "running")
    ended = _state(worker, "terminated") or _failed_init(_without_sidecars(inits, spec))
    # Whichever comes first keeps the others from starting.
    awaited = () if running else (*inits, worker)
    waiting = next((found for item in awaited if (found := _state(item, "waiting"))), {})
    conditions = {_text(item.get("type")): item for item in _objects(status.get("conditions"))}
    scheduled = conditions.get("PodScheduled", {})
    started_at = _instant(running.get("startedAt") or _state(worker, "terminated").get("startedAt"))
    finished_at = _instant(ended.get("finishedAt"))
    return PodFacts(
        namespace=_text(metadata.get("namespace")),
        name=_text(metadata.get("name")),
        uid=_text(metadata.get("uid")),
        resource_version=_text(metadata.get("resourceVersion")),
        run_uid=_text(labels.get(names.LABEL_RUN_UID)),
        run=_text(labels.get(names.LABEL_RUN)),
        slot=_number(labels.get(names.LABEL_SLOT), STRANGER),
        attempt=_number(labels.get(names.LABEL_ATTEMPT), 0),
        generation=_number(labels.get(names.LABEL_GENERATION), 0),
        node=_text(spec.get("nodeName")),
        phase=_text(status.get("phase")),
        created_at=_instant(metadata.get("creationTimestamp")),
        placed_at=_instant(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
        started_at=started_at,
        finished_at=finished_at,
        is_on_demand=labels.get(names.LABEL_CAPACITY) == names.CAPACITY_ON_DEMAND,
        is_running=bool(running),
        is_gated=bool(spec.get("schedulingGates")),
        unscheduled=_text(scheduled.get("message")) if scheduled.get("status") == "False" else "",
        deletion_at=_instant(metadata.get("deletionTimestamp")),
        avoids=tuple(_text(_object(metadata.get("annotations")).get(names.ANNOTATION_AVOIDS)).split()),
        waiting_reason=_text(waiting.get("reason")),
        waiting_message=_text(waiting.get("message")),
        evidence=_own_evidence(
            metadata,
            status,
            ended=ended,
            disruption=conditions.get("DisruptionTarget", {}),
            target=conditions.get("TerminationTarget", {}),
            has_started=bool(running or _state(worker, "terminated")),
            is_device_unhealthy=_is_device_unhealthy(worker),
            ran_s=max(0.0, (finished_at - started_at).total_seconds()) if started_at and finished_at else None,
        ),
    )


def _own_evidence(
    metadata: Mapping[str, Any],
    status: Mapping[str, Any],
    *,
    ended: Mapping[str, Any],
    disruption: Mapping[str, Any],
    target: Mapping[str, Any],
    has_started: bool,
    is_device_unhealthy: bool,
    ran_s: float | None,
) -> Evidence:
    is_deleted = bool(metadata.get("deletionTimestamp"))
    message = _text(ended.get("message"))
    flight = from_text(message)
    # The flight recorder's own text holds offsets and ids, which rules that search texts must not meet.
    # The pod's own message comes last, where the most telling one is looked for.
    messages = ("" if flight is not None else message, _text(status.get("message")))
    is_disrupted = disruption.get("status") == "True"
    return Evidence(
        exit_code=_code(ended.get("exitCode")),
        container_reason=_text(ended.get("reason")),
        pod_reason=_text(status.get("reason")),
        disruption_reason=(_text(disruption.get("reason")) or "no reason given") if is_disrupted else "",
        messages=tuple(item for item in messages if item),
        # An intent whose deletion never reached the API (the controller died between the two) explains no death.
        intent=_intent(_object(metadata.get("annotations")).get(names.ANNOTATION_INTENT)) if is_deleted else None,
        has_termination_target=target.get("status") == "True",
        has_deletion_timestamp=is_deleted,
        has_started=has_started,
        is_device_unhealthy=is_device_unhealthy,
        flight=flight,
        ran_s=ran_s,
    )


def read_node(node: Mapping[str, Any]) -> NodeFacts:
    """The facts of a node as the API gives it. Never raises."""
    metadata, spec, status = (_object(node.get(part)) for part in ("metadata", "spec", "status"))
    taints = {_text(item.get("key")) for item in _objects(spec.get("taints"))}
    conditions = {_text(item.get("type")): item.get("status") for item in _objects(status.get("conditions"))}
    is_terminating = (
        bool(metadata.get("deletionTimestamp"))
        or bool(taints & _TERMINATING_TAINTS)
        or any(key.startswith(_TERMINATING_TAINT_PREFIX) for key in taints)
    )
    if conditions.get("Ready") != "True" or taints & _NOT_READY_TAINTS:
        state = NodeState.NOT_READY
    else:
        state = NodeState.TERMINATING if is_terminating else NodeState.READY
    labels = _object(metadata.get("labels"))
    return NodeFacts(
        uid=_text(metadata.get("uid")),
        name=_text(metadata.get("name")),
        resource_version=_text(metadata.get("resourceVersion")),
        state=state,
        is_spot=any(labels.get(label) == value for label, value in _SPOT_LABELS),
        is_gpu_unhealthy=conditions.get(_GPU_CONDITION) == "False",
    )


def gone(pod: PodFacts) -> PodFacts:
    """The pod once its object has been deleted: what was last seen of it is all there will ever be."""
    return replace(pod, is_deleted=True)


def gone_node(node: NodeFacts) -> NodeFacts:
    """The node once its object has been deleted. What kind it was is still worth knowing."""
    return replace(node, state=NodeState.GONE)


def worker_view(pod: PodFacts, *, node: NodeFacts | None, run_uid: str, now: datetime) -> WorkerView:
    """The pod as a worker.

    Args:
        pod: its facts.
        node: its node; None = not placed, or nodes cannot be read; GONE = the API does not know it.
        run_uid: of the run that asks; pods of an earlier resource of that name get the slot STRANGER.
        now: the time.
    """
    state = _worker_state(pod, node, now)
    return WorkerView(
        name=pod.name,
        uid=pod.uid,
        slot=pod.slot if pod.run_uid == run_uid else STRANGER,
        attempt=pod.attempt,
        node=pod.node,
        state=state,
        started_at=pod.started_at,
        waits_for=_waits_for(pod) if state is WorkerState.STARTING else "",
        is_on_demand=pod.is_on_demand,
        avoids=pod.avoids,
        evidence=_evidence(pod, node) if state is WorkerState.ENDED else None,
    )


def _worker_state(pod: PodFacts, node: NodeFacts | None, now: datetime) -> WorkerState:
    if pod.is_deleted or pod.has_ended or _is_beyond_reach(pod, node, now):
        return WorkerState.ENDED
    if pod.deletion_at is not None:
        return WorkerState.DRAINING
    if pod.is_running:
        return WorkerState.RUNNING
    return WorkerState.ENDED if _waits_in_vain(pod, now) else WorkerState.STARTING


def _is_beyond_reach(pod: PodFacts, node: NodeFacts | None, now: datetime) -> bool:
    """Whether nobody can end it in good order any more: its node is gone, or is cut off while it ought to stop.

    A cut-off node alone does not do: most come back, and the pod's tolerations decide how long to wait. Nor does a kubelet
    that answers and does not end the pod (a device or a volume hangs) keep its place for ever. Should the worker still
    run: it is fenced before its pod's object is removed.
    """
    if pod.deletion_at is not None and now - pod.deletion_at >= STUCK:
        return True
    if node is None:
        return pod.phase == "Unknown" and pod.deletion_at is not None
    return node.state is NodeState.GONE or (node.state is NodeState.NOT_READY and pod.deletion_at is not None)


def _waits_for(pod: PodFacts) -> str:
    if pod.is_gated:
        return "its queue to admit it (scheduling gate)"
    if not pod.node:
        return f"a node: {pod.unscheduled}" if pod.unscheduled else "the scheduler"
    reason = f"{pod.waiting_reason or 'ContainerCreating'} on {pod.node}"
    return f"its container: {reason}" + (f": {pod.waiting_message}" if pod.waiting_message else "")


def _waits_in_vain(pod: PodFacts, now: datetime) -> bool:
    waiting_since = pod.placed_at or pod.created_at
    waited = now - waiting_since if waiting_since is not None else timedelta(0)
    if pod.waiting_reason not in _WAITS_IN_VAIN:
        # While an init container runs, the worker waits for PodInitializing: that may take as long as it likes.
        return pod.waiting_reason == "ContainerCreating" and waited >= START_PATIENCE
    is_overdue = waited >= PATIENCE
    return is_overdue or classify(_evidence(pod, None)).is_permanent


def _evidence(pod: PodFacts, node: NodeFacts | None) -> Evidence:
    own = pod.evidence
    return replace(
        own,
        waiting_reason="" if pod.has_ended else pod.waiting_reason,
        messages=own.messages if pod.has_ended or not pod.waiting_message else (*own.messages, pod.waiting_message),
        is_vanished=pod.is_deleted and not pod.has_ended,
        is_spot_node=node is not None and node.is_spot,
        is_device_unhealthy=own.is_device_unhealthy or (node is not None and node.is_gpu_unhealthy),
        node_state=NodeState.UNKNOWN if node is None else node.state,
    )


def _without_sidecars(inits: list[Mapping[str, Any]], spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Init containers that end before the worker starts; those that restart always run beside it (from 1.28 on)."""
    declared = _objects(spec.get("initContainers"))
    sidecars = [item.get("name") for item in declared if item.get("restartPolicy") == "Always"]
    return [item for item in inits if item.get("name") not in sidecars]


def _state(container: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = _object(container.get("state")).get(name)
    # `running: {}` says something too.
    return (found or {"reason": ""}) if isinstance(found, Mapping) else {}


def _failed_init(statuses: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((ended for item in statuses if _code((ended := _state(item, "terminated")).get("exitCode"))), {})


def _is_device_unhealthy(container: Mapping[str, Any]) -> bool:
    """Source: KEP-4680, `containerStatuses[].allocatedResourcesStatus[].resources[].health`."""
    return any(
        device.get("health") == "Unhealthy"
        for entry in _objects(container.get("allocatedResourcesStatus"))
        for device in _objects(entry.get("resources"))
    )


def _object(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _objects(found: object) -> list[Mapping[str, Any]]:
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def _text(found: object) -> str:
    return found if isinstance(found, str) else ""


def _code(found: object) -> int | None:
    return found if type(found) is int else None


def _intent(found: object) -> Intent | None:
    return next((intent for intent in Intent if intent == found), None)


def _instant(found: object) -> datetime | None:
    try:
        return parse_stamp(_text(found) or None)
    except (ValueError, OverflowError):
        return None


def _number(found: object, default: int) -> int:
    is_number = isinstance(found, str) and found.isdecimal() and len(found) <= _MAX_DIGITS
    return int(_text(found)) if is_number else default
