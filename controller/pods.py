"""Worker pods and their nodes: from what the API shows to what the planner and the failure policy ask. Pure.

`read_pod` and `read_node` keep the few facts that matter, so that a cache of thousands stays small. `worker_view` turns
them into a WorkerView: a pod has ended when its worker container has, when it is gone, when its node is, or when it
waits in vain for an image or a Secret; then it carries the evidence of its end.

Absent fields are normal (a pod that a node refused has no container status), so nothing here is looked up strictly, but
for what every object has.
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

STRANGER = -1
"""Slot of a pod that belongs to an earlier resource of this name: it takes nobody's place, and may still hold shards."""

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
    }
)
_CACHE_TROUBLE = "failed to sync"
"""A kubelet that has just started says so of Secrets that are there."""

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
    is_running: bool
    """Whether the worker container runs."""
    is_gated: bool
    """Held back by a scheduling gate: its queue has not admitted it yet."""
    deletion_at: datetime | None
    """`metadata.deletionTimestamp`: when its grace period is over."""
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


GONE = NodeFacts(uid="", name="", resource_version="", state=NodeState.GONE, is_spot=False)
"""A node that the API no longer knows."""


def read_pod(pod: Mapping[str, Any]) -> PodFacts:
    """The facts of a pod as the API gives it."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    statuses = status.get("containerStatuses") or []
    worker: Mapping[str, Any] = next((item for item in statuses if item.get("name") == names.CONTAINER_WORKER), {})
    inits = status.get("initContainerStatuses") or []
    running = _state(worker, "running")
    ended = _state(worker, "terminated") or _failed_init(inits)
    waiting = next((found for item in (*inits, worker) if (found := _state(item, "waiting"))), {})
    conditions = {item.get("type"): item for item in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    started_at = _instant(running.get("startedAt") or _state(worker, "terminated").get("startedAt"))
    finished_at = _instant(ended.get("finishedAt"))
    return PodFacts(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata.get("resourceVersion", ""),
        run_uid=labels.get(names.LABEL_RUN_UID, ""),
        run=labels.get(names.LABEL_RUN, ""),
        slot=_number(labels.get(names.LABEL_SLOT), STRANGER),
        attempt=_number(labels.get(names.LABEL_ATTEMPT), 0),
        generation=_number(labels.get(names.LABEL_GENERATION), 0),
        node=(pod.get("spec") or {}).get("nodeName") or "",
        phase=status.get("phase") or "",
        created_at=_instant(metadata.get("creationTimestamp")),
        placed_at=_instant(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
        started_at=started_at,
        finished_at=finished_at,
        is_running=bool(running),
        is_gated=bool((pod.get("spec") or {}).get("schedulingGates")),
        deletion_at=_instant(metadata.get("deletionTimestamp")),
        waiting_reason=waiting.get("reason") or "",
        waiting_message=waiting.get("message") or "",
        evidence=_own_evidence(
            metadata,
            status,
            ended=ended,
            disruption=conditions.get("DisruptionTarget", {}),
            target=conditions.get("TerminationTarget", {}),
            has_started=bool(running or _state(worker, "terminated")),
            is_device_unhealthy=_is_device_unhealthy(worker),
            ran_s=(finished_at - started_at).total_seconds() if started_at and finished_at else None,
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
    message = ended.get("message") or ""
    flight = from_text(message)
    # The flight recorder's own text holds offsets and ids, which rules that search texts must not meet.
    messages = (status.get("message") or "", "" if flight is not None else message)
    return Evidence(
        exit_code=ended.get("exitCode"),
        container_reason=ended.get("reason") or "",
        pod_reason=status.get("reason") or "",
        disruption_reason=disruption.get("reason") or "" if disruption.get("status") == "True" else "",
        messages=tuple(item for item in messages if item),
        # An intent whose deletion never reached the API (the controller died between the two) explains no death.
        intent=_intent((metadata.get("annotations") or {}).get(names.ANNOTATION_INTENT)) if is_deleted else None,
        has_termination_target=target.get("status") == "True",
        has_deletion_timestamp=is_deleted,
        has_started=has_started,
        is_device_unhealthy=is_device_unhealthy,
        flight=flight,
        ran_s=ran_s,
    )


def read_node(node: Mapping[str, Any]) -> NodeFacts:
    """The facts of a node as the API gives it."""
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    taints = {item.get("key") or "" for item in spec.get("taints") or []}
    ready = next((item.get("status") for item in status.get("conditions") or [] if item.get("type") == "Ready"), None)
    is_terminating = (
        bool(metadata.get("deletionTimestamp"))
        or bool(taints & _TERMINATING_TAINTS)
        or any(key.startswith(_TERMINATING_TAINT_PREFIX) for key in taints)
    )
    if ready != "True" or taints & _NOT_READY_TAINTS:
        state = NodeState.NOT_READY
    else:
        state = NodeState.TERMINATING if is_terminating else NodeState.READY
    return NodeFacts(
        uid=metadata["uid"],
        name=metadata["name"],
        resource_version=metadata.get("resourceVersion", ""),
        state=state,
        is_spot=bool(_SPOT_LABELS & set((metadata.get("labels") or {}).items())),
    )


def gone(pod: PodFacts) -> PodFacts:
    """The pod once its object has been deleted: what was last seen of it is all there will ever be."""
    return replace(pod, is_deleted=True)


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
        evidence=_evidence(pod, node) if state is WorkerState.ENDED else None,
    )


def _worker_state(pod: PodFacts, node: NodeFacts | None, now: datetime) -> WorkerState:
    if pod.is_deleted or pod.has_ended or _is_beyond_reach(pod, node):
        return WorkerState.ENDED
    if pod.deletion_at is not None:
        return WorkerState.DRAINING
    if pod.is_running:
        return WorkerState.RUNNING
    return WorkerState.ENDED if _waits_in_vain(pod, now) else WorkerState.STARTING


def _is_beyond_reach(pod: PodFacts, node: NodeFacts | None) -> bool:
    """Whether nobody can end it in good order any more: its node is gone, or is cut off while it ought to stop.

    A cut-off node alone does not do: most come back, and the pod's tolerations decide how long to wait.
    """
    if node is None:
        return pod.phase == "Unknown" and pod.deletion_at is not None
    return node.state is NodeState.GONE or (node.state is NodeState.NOT_READY and pod.deletion_at is not None)


def _waits_in_vain(pod: PodFacts, now: datetime) -> bool:
    if pod.waiting_reason not in _WAITS_IN_VAIN:
        return False
    waiting_since = pod.placed_at or pod.created_at
    is_overdue = waiting_since is not None and now - waiting_since >= PATIENCE
    is_hopeless = classify(_evidence(pod, None)).is_permanent and _CACHE_TROUBLE not in pod.waiting_message
    return is_hopeless or is_overdue


def _evidence(pod: PodFacts, node: NodeFacts | None) -> Evidence:
    own = pod.evidence
    return replace(
        own,
        waiting_reason="" if pod.has_ended else pod.waiting_reason,
        messages=own.messages if pod.has_ended or not pod.waiting_message else (*own.messages, pod.waiting_message),
        is_vanished=pod.is_deleted and not pod.has_ended,
        is_spot_node=node is not None and node.is_spot,
        node_state=NodeState.UNKNOWN if node is None else node.state,
    )


def _state(container: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (container.get("state") or {}).get(name) or {}
    # `running: {}` says something too.
    return found or ({"reason": ""} if name in (container.get("state") or {}) else {})


def _failed_init(statuses: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((ended for item in statuses if (ended := _state(item, "terminated")).get("exitCode")), {})


def _is_device_unhealthy(container: Mapping[str, Any]) -> bool:
    """Source: KEP-4680, `containerStatuses[].allocatedResourcesStatus[].resources[].health`."""
    return any(
        device.get("health") == "Unhealthy"
        for entry in container.get("allocatedResourcesStatus") or []
        for device in entry.get("resources") or []
    )


def _intent(text: str | None) -> Intent | None:
    return Intent(text) if text in set(Intent) else None


def _instant(text: str | None) -> datetime | None:
    return parse_stamp(text) if text else None


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default
