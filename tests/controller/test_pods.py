"""controller.pods: pods and nodes as every way of dying shows them, down to the class that follows."""

from __future__ import annotations

from typing import Any

import pytest

from contract import names
from contract.flight import Flight, to_text
from contract.names import FailureClass
from controller.failure_policy import classify
from controller.observed import Intent, NodeState, WorkerState
from controller.pods import GONE, STRANGER, NodeFacts, gone, read_node, read_pod, worker_view
from tests.make import NOW, later

STARTED = "2026-01-01T11:59:00Z"
ENDED = "2026-01-01T11:59:30Z"
READY = NodeFacts(uid="n", name="node-a", resource_version="1", state=NodeState.READY, is_spot=False)
CUT_OFF = NodeFacts(uid="n", name="node-a", resource_version="1", state=NodeState.NOT_READY, is_spot=False)
EVICTED = {"DisruptionTarget": "EvictionByEvictionAPI"}
SPOT = NodeFacts(uid="n", name="node-a", resource_version="1", state=NodeState.READY, is_spot=True)


def pod(
    phase: str = "Running",
    *,
    state: dict[str, Any] | None = None,
    conditions: dict[str, str] | None = None,
    metadata: dict[str, Any] | None = None,
    node: str | None = "node-a",
    **status: Any,
) -> dict[str, Any]:
    """A worker pod of run `u-1`; `conditions` are reasons of conditions that are True."""
    found = [{"type": kind, "status": "True", "reason": reason} for kind, reason in (conditions or {}).items()]
    if node is not None:
        found.append({"type": "PodScheduled", "status": "True", "lastTransitionTime": STARTED})
    containers = [] if state is None else [{"name": "worker", "state": state}]
    return {
        "metadata": {
            "namespace": "default",
            "name": "run-0-1",
            "uid": "p-1",
            "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T11:50:00Z",
            "labels": {
                names.LABEL_RUN: "run",
                names.LABEL_RUN_UID: "u-1",
                names.LABEL_SLOT: "0",
                names.LABEL_ATTEMPT: "1",
                names.LABEL_GENERATION: "2",
            },
            **(metadata or {}),
        },
        "spec": {"nodeName": node} if node is not None else {},
        "status": {"phase": phase, "conditions": found, "containerStatuses": containers, **status},
    }


def running() -> dict[str, Any]:
    """State of a container that runs."""
    return {"running": {"startedAt": STARTED}}


def terminated(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    """State of a container that has ended."""
    return {
        "terminated": {
            "exitCode": code,
            "reason": reason,
            "message": message,
            "startedAt": STARTED,
            "finishedAt": ENDED,
        }
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """State of a container that has not started."""
    return {"waiting": {"reason": reason, "message": message}}


def deleted(intent: str | None = None) -> dict[str, Any]:
    """Metadata of a pod that somebody has deleted."""
    annotations = {names.ANNOTATION_INTENT: intent} if intent else {}
    return {"deletionTimestamp": "2026-01-01T12:00:30Z", "annotations": annotations}


def view(found: dict[str, Any], node: NodeFacts | None = READY, *, seconds: float = 0.0) -> Any:
    """The pod as a worker, `seconds` after NOW."""
    return worker_view(read_pod(found), node=node, run_uid="u-1", now=later(seconds))


def test_a_running_pod_is_known_by_its_labels() -> None:
    """Slot, attempt, node and start come from the pod itself."""
    found = view(pod(state=running()))

    assert (found.name, found.uid, found.slot, found.attempt, found.node) == ("run-0-1", "p-1", 0, 1, "node-a")
    assert found.state is WorkerState.RUNNING
    assert found.started_at == later(-60)
    assert found.evidence is None


def test_a_pod_of_an_earlier_run_of_that_name_takes_nobodys_place() -> None:
    """It may hold shards still, so it is seen, but in no slot."""
    found = worker_view(read_pod(pod(state=running())), node=READY, run_uid="u-2", now=NOW)

    assert found.slot == STRANGER


@pytest.mark.parametrize(
    ("found", "node", "expected"),
    [
        (pod("Pending", node=None), None, WorkerState.STARTING),
        (pod("Pending", conditions={"SchedulingGated": ""}, node=None), None, WorkerState.STARTING),
        (pod("Pending", state=waiting("ContainerCreating")), READY, WorkerState.STARTING),
        (pod(state=running()), CUT_OFF, WorkerState.RUNNING),
        (pod(state=running(), metadata=deleted()), READY, WorkerState.DRAINING),
        (pod(state=running(), metadata=deleted()), CUT_OFF, WorkerState.ENDED),
        (pod(state=running()), GONE, WorkerState.ENDED),
        (pod(state=terminated(1)), READY, WorkerState.ENDED),
        (pod("Succeeded", state=terminated(0, "Completed")), READY, WorkerState.ENDED),
        (pod("Failed"), READY, WorkerState.ENDED),
        (pod("Unknown", state=running(), metadata=deleted()), None, WorkerState.ENDED),
        (pod("Unknown", state=running()), None, WorkerState.RUNNING),
    ],
)
def test_where_a_worker_stands(found: dict[str, Any], node: NodeFacts | None, expected: WorkerState) -> None:
    """Ended is what can do nothing any more: its container has, or its node is gone, or cut off while it ought to stop."""
    assert view(found, node).state is expected


@pytest.mark.parametrize(
    ("state", "after_s", "expected"),
    [
        (waiting("InvalidImageName"), 0, WorkerState.ENDED),
        (waiting("ErrImageNeverPull"), 0, WorkerState.ENDED),
        (waiting("ErrImagePull", "pull access denied"), 0, WorkerState.ENDED),
        (waiting("ErrImagePull", "i/o timeout"), -10, WorkerState.STARTING),
        (waiting("ImagePullBackOff", "Back-off pulling image"), -10, WorkerState.STARTING),
        (waiting("ImagePullBackOff", "Back-off pulling image"), 30, WorkerState.ENDED),
        (waiting("CreateContainerConfigError", 'secret "s" not found'), 0, WorkerState.ENDED),
        (
            waiting("CreateContainerConfigError", "failed to sync secret cache: timed out waiting for the condition"),
            -30,
            WorkerState.STARTING,
        ),
        (waiting("CreateContainerError", "mount"), 30, WorkerState.ENDED),
        (waiting("ContainerCreating"), 1700, WorkerState.STARTING),
        (waiting("ContainerCreating"), 1800, WorkerState.ENDED),
        (waiting("PodInitializing"), 9999, WorkerState.STARTING),
    ],
)
def test_a_pod_that_waits_in_vain_has_ended(state: dict[str, Any], after_s: float, expected: WorkerState) -> None:
    """What cannot mend ends at once; what may is left to the kubelet for a minute after the pod was placed."""
    assert view(pod("Pending", state=state), seconds=after_s).state is expected


def test_a_start_that_hangs_speaks_against_the_node() -> None:
    """A pull or a mount that does not come to an end is nobody's failure."""
    found = view(pod("Pending", state=waiting("ContainerCreating")), seconds=1800)

    assert classify(found.evidence).failure_class is FailureClass.NODE_REJECTED


@pytest.mark.parametrize(("after_s", "expected"), [(290, WorkerState.DRAINING), (331, WorkerState.ENDED)])
def test_a_deleted_pod_that_nobody_ends_gives_up_its_place(after_s: float, expected: WorkerState) -> None:
    """Five minutes after its grace period, though its node answers; and nothing is charged for it."""
    stuck = pod(state=running(), metadata={"deletionTimestamp": "2026-01-01T12:00:30Z"})
    found = view(stuck, seconds=after_s)

    assert found.state is expected
    assert found.evidence is None or not classify(found.evidence).is_counted


def unscheduled(message: str) -> dict[str, Any]:
    """A pod that the scheduler has looked at in vain."""
    found = pod("Pending", node=None)
    found["status"]["conditions"].append({"type": "PodScheduled", "status": "False", "message": message})
    return found


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (unscheduled("0/3 nodes are available"), "a node: 0/3 nodes are available"),
        (pod("Pending", node=None), "the scheduler"),
        ({**pod("Pending", node=None), "spec": {"schedulingGates": [{"name": "q"}]}}, "its queue"),
        (pod("Pending"), "its container: ContainerCreating on node-a"),
        (pod("Pending", state=waiting("ErrImagePull", "i/o timeout")), "its container: ErrImagePull on node-a: i/o"),
        (pod(state=running()), ""),
    ],
)
def test_what_a_worker_waits_for(found: dict[str, Any], expected: str) -> None:
    """In the words of whoever keeps it waiting."""
    assert view(found, seconds=-30).waits_for.startswith(expected)
    assert bool(view(found, seconds=-30).waits_for) == bool(expected)


@pytest.mark.parametrize(
    ("found", "node", "expected"),
    [
        # Spot on GKE, and its newer and older words.
        (pod("Failed", reason="Terminated", conditions={"DisruptionTarget": "TerminationByKubelet"}), SPOT, "SpotEviction"),
        (pod("Failed", reason="NodeShutdown"), READY, "SpotEviction"),
        (pod("Failed", state=terminated(137), conditions=EVICTED), READY, "SpotEviction"),
        # Eviction on 1.20: no condition.
        (pod("Failed", state=terminated(143), metadata=deleted()), READY, "SpotEviction"),
        (pod("Failed", state=terminated(137), metadata=deleted()), READY, "SpotEviction"),
        (pod(state=running(), metadata=deleted()), GONE, "NodeLost"),
        (pod(state=running(), metadata=deleted()), CUT_OFF, "NodeLost"),
        (pod("Failed", reason="NodeLost", state=terminated(137, "ContainerStatusUnknown")), READY, "NodeLost"),
        (pod("Failed", state=terminated(255, "Unknown")), READY, "NodeLost"),
        (pod("Failed", reason="UnexpectedAdmissionError", message="Allocate failed"), READY, "NodeRejected"),
        (pod("Failed", reason="OutOfcpu"), READY, "NodeRejected"),
        (pod("Failed", reason="Evicted", message="The node had condition: [DiskPressure]"), READY, "NodeRejected"),
        (
            pod(
                "Failed",
                reason="Evicted",
                message="The node was low on resource: memory.",
                conditions={"DisruptionTarget": "TerminationByKubelet"},
                state=terminated(137),
            ),
            READY,
            "NodeRejected",
        ),
        (
            pod("Failed", reason="Evicted", message="Usage of EmptyDir volume exceeds the limit", state=terminated(137)),
            READY,
            "DiskPressure",
        ),
        (pod("Failed", state=terminated(137, "OOMKilled")), READY, "OutOfMemory"),
        (pod("Failed", state=terminated(77)), READY, "GpuHardware"),
        (pod("Failed", state=terminated(64)), READY, "Configuration"),
        (pod("Failed", state=terminated(1, message="Traceback: boom")), READY, "Transient"),
        (pod("Failed", state=terminated(0, "Completed", message=to_text(Flight(exit_code=0)))), READY, "Done"),
        (pod("Failed", state=terminated(0, "Completed")), READY, "Transient"),  # no worker of ours said so
        (pod("Failed", state=terminated(143), conditions={"TerminationTarget": "WorkloadEvicted"}), READY, "Intended"),
        (pod("Failed", state=terminated(143), metadata=deleted("suspended")), READY, "Intended"),
        (pod("Failed", state=terminated(143), metadata=deleted("stalled")), READY, "Transient"),
        (pod("Pending", state=waiting("InvalidImageName", "no such name")), READY, "Configuration"),
    ],
)  # fmt: skip
def test_what_a_death_is_judged_as(found: dict[str, Any], node: NodeFacts, expected: str) -> None:
    """Each way in which Kubernetes shows a death leads to the class that the design names."""
    worker = view(found, node, seconds=120)

    assert worker.state is WorkerState.ENDED
    assert classify(worker.evidence).failure_class is FailureClass(expected)


def test_the_flight_recorder_comes_out_of_the_termination_message() -> None:
    """Its facts are read; its text is not searched for the words of other failures."""
    flight = Flight(shard=3, epoch=2, first=5, next=9, first_id="out of memory")
    found = view(pod("Failed", state=terminated(139, message=to_text(flight))))

    assert found.evidence.flight == flight
    assert found.evidence.messages == ()
    assert found.evidence.ran_s == 30.0


def test_an_intent_without_a_deletion_explains_nothing() -> None:
    """The controller that recorded it died before it deleted the pod; what ends it later is something else."""
    found = view(pod("Failed", state=terminated(1), metadata={"annotations": {names.ANNOTATION_INTENT: "suspended"}}))

    assert found.evidence.intent is None


def test_an_intent_is_handed_back() -> None:
    """So that our own stop is not taken for an eviction, unknown words are ignored."""
    assert (
        view(pod("Failed", state=terminated(143), metadata=deleted("scaleDown"))).evidence.intent is Intent.SCALE_DOWN
    )
    assert view(pod("Failed", state=terminated(143), metadata=deleted("whim"))).evidence.intent is None


def test_a_deleted_object_keeps_what_was_last_seen() -> None:
    """A pod that ended before it went did not vanish; one that ran did."""
    ended = worker_view(gone(read_pod(pod("Failed", state=terminated(143)))), node=GONE, run_uid="u-1", now=NOW)
    ran = worker_view(gone(read_pod(pod(state=running()))), node=READY, run_uid="u-1", now=NOW)

    assert (ended.state, ended.evidence.exit_code, ended.evidence.is_vanished) == (WorkerState.ENDED, 143, False)
    assert (ran.state, ran.evidence.is_vanished) == (WorkerState.ENDED, True)


def test_a_sidecar_says_nothing_about_the_worker() -> None:
    """A mesh's proxy that runs on does not keep an ended worker alive, nor does one that ends kill it."""
    found = pod(state=terminated(143))
    found["status"]["containerStatuses"].insert(0, {"name": "proxy", "state": running()})
    alive = pod(state=running())
    alive["status"]["containerStatuses"].insert(0, {"name": "proxy", "state": terminated(1)})

    assert view(found).state is WorkerState.ENDED
    assert view(alive).state is WorkerState.RUNNING


def test_an_init_container_that_fails_is_the_evidence() -> None:
    """The worker never ran; what its init container said counts."""
    inits = [{"name": "fetch", "state": terminated(2, message="no such bucket")}]
    found = view(pod("Failed", initContainerStatuses=inits))

    assert (found.evidence.exit_code, found.evidence.has_started) == (2, False)
    assert found.evidence.messages == ("no such bucket",)


def test_an_unhealthy_device_is_noticed() -> None:
    """KEP-4680 reports it beside the container's state."""
    found = pod("Failed", state=terminated(1))
    found["status"]["containerStatuses"][0]["allocatedResourcesStatus"] = [
        {"name": "nvidia.com/gpu", "resources": [{"resourceID": "GPU-0", "health": "Unhealthy"}]}
    ]

    assert classify(view(found).evidence).failure_class is FailureClass.GPU_HARDWARE


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, NodeState.READY),
        ({"ready": "False"}, NodeState.NOT_READY),
        ({"ready": "Unknown"}, NodeState.NOT_READY),
        ({"taints": ["node.kubernetes.io/unreachable"]}, NodeState.NOT_READY),
        ({"taints": ["karpenter.sh/disrupted"]}, NodeState.TERMINATING),
        ({"taints": ["aws-node-termination-handler/spot-itn"]}, NodeState.TERMINATING),
        ({"taints": ["node.kubernetes.io/unschedulable"]}, NodeState.READY),
        ({"deleted": True}, NodeState.TERMINATING),
    ],
)
def test_where_a_node_stands(changes: dict[str, Any], expected: NodeState) -> None:
    """Cordoned is not terminating: people cordon nodes whose pods are to go on."""
    metadata = {"name": "n", "uid": "1", **({"deletionTimestamp": STARTED} if changes.get("deleted") else {})}
    found = read_node(
        {
            "metadata": metadata,
            "spec": {"taints": [{"key": key} for key in changes.get("taints", [])]},
            "status": {"conditions": [{"type": "Ready", "status": changes.get("ready", "True")}]},
        }
    )

    assert found.state is expected


@pytest.mark.parametrize(
    ("label", "value", "expected"),
    [
        ("cloud.google.com/gke-spot", "true", True),
        ("karpenter.sh/capacity-type", "spot", True),
        ("karpenter.sh/capacity-type", "on-demand", False),
        ("eks.amazonaws.com/capacityType", "SPOT", True),
    ],
)
def test_spot_nodes_are_known_by_their_labels(label: str, value: str, *, expected: bool) -> None:
    """Each provider has its own."""
    assert read_node({"metadata": {"name": "n", "uid": "1", "labels": {label: value}}}).is_spot is expected
