"""controller.failure_policy: from evidence to verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.flight import Flight
from contract.manifest import ShardManifest
from contract.names import ExitCode, FailureClass
from controller.api import CrashLoopPolicy, FailurePolicy
from controller.failure_policy import (
    ADVICE,
    CHARGES,
    EXIT_CLASSES,
    FREE,
    Charge,
    Verdict,
    classify,
    escalated,
    in_flight,
    is_crash_loop,
    signature,
)
from controller.memory import Death
from controller.observed import Evidence, Intent, NodeState
from tests import make

HELD = make.held()
BATCH = make.flight(10, 20)

CASES: dict[FailureClass, list[tuple[str, Evidence, ShardManifest | None]]] = {
    FailureClass.DONE: [
        ("exit 0 with nothing held", Evidence(exit_code=0, flight=make.flight(shard=None, exit_code=0)), None),
        ("its shard is complete", Evidence(exit_code=139), make.complete()),
        (
            "completed, then refused at a kubelet restart",
            Evidence(pod_reason="UnexpectedAdmissionError"),
            make.complete(),
        ),
    ],
    FailureClass.INTENDED: [
        ("we scaled down", Evidence(exit_code=143, intent=Intent.SCALE_DOWN), HELD),
        ("we stopped it and it had to be killed", Evidence(signal=9, intent=Intent.SUSPENDED), HELD),
        ("intended, though the node went too", Evidence(intent=Intent.RUN_ENDED, node_state=NodeState.GONE), HELD),
        ("Kueue", Evidence(exit_code=137, has_termination_target=True), HELD),
        ("fenced", Evidence(exit_code=79), None),
        ("deleted by a user before it ran", Evidence(has_deletion_timestamp=True), None),
    ],
    FailureClass.SPOT_EVICTION: [
        ("GKE shutdown", Evidence(pod_reason="Terminated", exit_code=137), HELD),
        ("rejected by a node going down", Evidence(pod_reason="NodeShutdown", has_started=False), None),
        ("drain by the eviction API", Evidence(disruption_reason="EvictionByEvictionAPI", exit_code=143), HELD),
        ("orphan removed with its node", Evidence(disruption_reason="DeletionByPodGC"), HELD),
        (
            "disrupted and OOMKilled in the rush",
            Evidence(disruption_reason="DeletionByTaintManager", container_reason="OOMKilled", exit_code=137),
            HELD,
        ),
        ("spot node not ready", Evidence(is_spot_node=True, node_state=NodeState.NOT_READY), HELD),
        (
            "spot node gone, pod vanished",
            Evidence(is_spot_node=True, node_state=NodeState.GONE, is_vanished=True),
            HELD,
        ),
        ("drained with a deletion timestamp", Evidence(exit_code=143, has_deletion_timestamp=True), None),
        ("SIGTERM before the handler was there", Evidence(signal=15), None),
        ("deleted, exit 0, shard unfinished", Evidence(exit_code=0, has_deletion_timestamp=True), HELD),
        ("grace period over", Evidence(exit_code=137, has_deletion_timestamp=True), HELD),
        (
            "exit 0 in a shutdown, shard unfinished",
            Evidence(exit_code=0, disruption_reason="TerminationByKubelet"),
            HELD,
        ),
    ],
    FailureClass.NODE_LOST: [
        ("node gone", Evidence(node_state=NodeState.GONE, exit_code=1), HELD),
        ("node unreachable", Evidence(node_state=NodeState.NOT_READY), HELD),
        ("kubelet lost it", Evidence(container_reason="ContainerStatusUnknown", exit_code=137), HELD),
        ("containerd restarted", Evidence(container_reason="Unknown", exit_code=255), HELD),
        ("the same under another name", Evidence(exit_code=255, container_reason="Error", flight=BATCH), HELD),
        ("pod reason NodeLost", Evidence(pod_reason="NodeLost"), HELD),
        ("vanished", Evidence(is_vanished=True), HELD),
        ("local SIGKILL, no memory event", Evidence(signal=9, flight=BATCH), HELD),
        ("137 Error without a reason", Evidence(exit_code=137, container_reason="Error"), HELD),
    ],
    FailureClass.NODE_REJECTED: [
        ("no GPU to be had", Evidence(pod_reason="UnexpectedAdmissionError", has_started=False), None),
        ("scheduling race", Evidence(pod_reason="OutOfnvidia.com/gpu", has_started=False), None),
        (
            "made room for a critical pod",
            Evidence(pod_reason="Preempting", disruption_reason="TerminationByKubelet", exit_code=137),
            HELD,
        ),
        (
            "node pressure",
            Evidence(
                pod_reason="Evicted",
                disruption_reason="TerminationByKubelet",
                messages=("The node was low on resource: memory.",),
                exit_code=137,
            ),
            HELD,
        ),
        ("no sandbox", Evidence(waiting_reason="CreatePodSandboxError", has_started=False), None),
        (
            "admission under pressure",
            Evidence(pod_reason="Evicted", has_started=False, messages=("The node had condition: [DiskPressure].",)),
            None,
        ),
    ],
    FailureClass.GPU_HARDWARE: [
        ("exit 77", Evidence(exit_code=77), HELD),
        ("Xid 79", Evidence(exit_code=1, messages=("NVRM: Xid (PCI:0000:01:00): 79, pid=7, GPU has fallen",)), HELD),
        ("ECC", Evidence(exit_code=1, messages=("CUDA error: uncorrectable ECC error encountered",)), HELD),
        (
            "no driver",
            Evidence(exit_code=128, container_reason="StartError", messages=("nvidia-container-cli: nvml error",)),
            None,
        ),
        ("device plugin says unhealthy", Evidence(exit_code=1, is_device_unhealthy=True), HELD),
        (
            "off the bus, by the worker's own words",
            Evidence(exit_code=75, flight=make.flight(detail="GPU has fallen off the bus")),
            HELD,
        ),
    ],
    FailureClass.OUT_OF_MEMORY: [
        ("OOMKilled", Evidence(exit_code=137, container_reason="OOMKilled"), HELD),
        ("local OOM kill", Evidence(signal=9, is_oom_killed=True), HELD),
        (
            "OOMKilled while being deleted",
            Evidence(exit_code=137, container_reason="OOMKilled", has_deletion_timestamp=True),
            HELD,
        ),
        ("exit 78", Evidence(exit_code=78), HELD),
        ("CUDA out of memory", Evidence(exit_code=1, messages=("torch.OutOfMemoryError: CUDA out of memory.",)), HELD),
        (
            "data worker killed",
            Evidence(exit_code=1, messages=("DataLoader worker (pid 7) is killed by signal: Killed.",)),
            HELD,
        ),
        (
            "bad_alloc aborts",
            Evidence(exit_code=134, messages=("terminate called: std::bad_alloc",), flight=BATCH),
            HELD,
        ),
    ],
    FailureClass.POISON_INPUT: [
        ("SIGSEGV with a batch", Evidence(exit_code=139, flight=BATCH), HELD),
        ("SIGABRT, local", Evidence(signal=6, flight=BATCH), HELD),
        (
            "CUDA assert",
            Evidence(exit_code=1, messages=("RuntimeError: CUDA error: device-side assert triggered",), flight=BATCH),
            HELD,
        ),
        (
            "Xid 31 follows the program",
            Evidence(exit_code=1, messages=("Xid 31", "an illegal memory access was encountered"), flight=BATCH),
            HELD,
        ),
    ],
    FailureClass.DISK_PRESSURE: [
        (
            "own disk limit",
            Evidence(
                pod_reason="Evicted",
                messages=("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi.",),
                exit_code=137,
            ),
            HELD,
        ),
        (
            "own disk limit, statuses dropped",
            Evidence(
                pod_reason="Evicted",
                messages=("Pod ephemeral local storage usage exceeds the total limit of containers 1Mi.",),
                has_started=False,
            ),
            None,
        ),
        (
            "emptyDir limit",
            Evidence(pod_reason="Evicted", messages=('Usage of EmptyDir volume "x" exceeds the limit "1Mi".',)),
            HELD,
        ),
        ("disk full", Evidence(exit_code=1, messages=("OSError: [Errno 28] No space left on device",)), HELD),
    ],
    FailureClass.CONFIGURATION: [
        ("exit 64", Evidence(exit_code=64), None),
        ("exit 69", Evidence(exit_code=69), HELD),
        ("image name", Evidence(waiting_reason="InvalidImageName", has_started=False), None),
        ("image not there", Evidence(waiting_reason="ErrImageNeverPull", has_started=False), None),
        ("missing secret", Evidence(waiting_reason="CreateContainerConfigError", has_started=False), None),
        (
            "manifest unknown",
            Evidence(waiting_reason="ErrImagePull", messages=("manifest unknown",), has_started=False),
            None,
        ),
        ("no such command", Evidence(exit_code=127, container_reason="ContainerCannotRun"), None),
        (
            "no such program",
            Evidence(exit_code=128, container_reason="StartError", messages=("exec: executable file not found",)),
            None,
        ),
        ("sysctl of a template", Evidence(pod_reason="SysctlForbidden", has_started=False), None),
        ("an unhealthy device excuses no bad spec", Evidence(exit_code=64, is_device_unhealthy=True), None),
        (
            "a stale condition excuses no bad spec",
            Evidence(exit_code=64, disruption_reason="EvictionByEvictionAPI"),
            None,
        ),
        (
            "pull denied",
            Evidence(waiting_reason="ImagePullBackOff", messages=("pull access denied for x",), has_started=False),
            None,
        ),
    ],
    FailureClass.IMAGE_PULL: [
        (
            "registry busy",
            Evidence(waiting_reason="ErrImagePull", messages=("429 Too Many Requests",), has_started=False),
            None,
        ),
        (
            "registry down",
            Evidence(waiting_reason="ImagePullBackOff", messages=("i/o timeout",), has_started=False),
            None,
        ),
    ],
    FailureClass.CRASH_LOOP: [
        ("restart policy of a template", Evidence(waiting_reason="CrashLoopBackOff"), None),
    ],
    FailureClass.TRANSIENT: [
        ("exit 75", Evidence(exit_code=75), HELD),
        ("exit 76", Evidence(exit_code=76, flight=BATCH), HELD),
        ("an exception", Evidence(exit_code=1, messages=("KeyError: 'x'",)), HELD),
        ("SIGSEGV without a batch", Evidence(exit_code=139, flight=make.flight()), HELD),
        ("SIGSEGV in an earlier epoch's batch", Evidence(exit_code=139, flight=make.flight(1, 2, epoch=9)), HELD),
        ("exit 0 while holding a shard", Evidence(exit_code=0, flight=make.flight(exit_code=0)), HELD),
        ("exit 0 of something that is no worker", Evidence(exit_code=0), None),
        ("a user's module ended the process", Evidence(exit_code=0, flight=make.flight(shard=None)), None),
        ("attempt timeout, drained", Evidence(exit_code=143, intent=Intent.ATTEMPT_TIMEOUT), HELD),
        ("stalled, killed", Evidence(signal=9, intent=Intent.STALLED), HELD),
        ("nothing known at all", Evidence(), HELD),
        ("exit 255 of something that is no worker", Evidence(exit_code=255, container_reason="Error"), HELD),
        ("the pod's own deadline", Evidence(exit_code=143, pod_reason="DeadlineExceeded"), HELD),
        ("the runtime says nothing more", Evidence(exit_code=128, container_reason="StartError"), None),
    ],
}


@pytest.mark.parametrize(
    ("seen", "manifest", "expected"),
    [pytest.param(seen, manifest, kind, id=name) for kind, cases in CASES.items() for name, seen, manifest in cases],
)
def test_class_of_each_kind_of_evidence(seen: Evidence, manifest: ShardManifest | None, expected: FailureClass) -> None:
    """Each kind of evidence gets the class of the table, and a sentence."""
    verdict = classify(seen, manifest)

    assert verdict.failure_class is expected
    assert verdict.evidence


def test_the_cases_cover_every_class() -> None:
    """No failure class is without a case here, a charge and an advice."""
    assert set(CASES) == set(FailureClass) == set(CHARGES) == set(ADVICE)


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_of_the_table_has_its_class(code: ExitCode) -> None:
    """The one table of exit codes leads to the class it promises when the worker's last words are all that is known."""
    seen = Evidence(exit_code=int(code), flight=make.flight(shard=None, exit_code=int(code)))

    assert classify(seen).failure_class is EXIT_CLASSES[code]


@pytest.mark.parametrize(
    ("seen", "manifest", "charge", "score"),
    [
        ({"exit_code": 143}, HELD, Charge.NOBODY, 0),
        ({"node_state": NodeState.GONE}, HELD, Charge.NODE, 1),
        ({"is_vanished": True}, HELD, Charge.NODE, 0),
        ({"signal": 9}, HELD, Charge.NOBODY, 0),
        ({"exit_code": 77}, HELD, Charge.NODE, 3),
        ({"exit_code": 78}, HELD, Charge.SHARD, 0),
        ({"signal": 11, "flight": BATCH}, HELD, Charge.RECORDS, 0),
        ({"exit_code": 64}, None, Charge.RUN, 0),
        ({"exit_code": 64}, HELD, Charge.SHARD, 0),
        ({"exit_code": 69}, HELD, Charge.RUN, 0),
        ({"exit_code": 75}, HELD, Charge.SHARD, 0),
    ],
)
def test_who_pays(seen: dict[str, Any], manifest: ShardManifest | None, charge: Charge, score: int) -> None:
    """Each death is charged to whom the design says, and only faults of a node score against it."""
    verdict = classify(Evidence(**seen), manifest)

    assert (verdict.charged_to, verdict.node_score) == (charge, score)


@pytest.mark.parametrize("failure_class", list(FailureClass))
def test_only_the_free_classes_do_not_count(failure_class: FailureClass) -> None:
    """Evictions, intended stops and lost or refusing nodes never count; all else does."""
    verdict = Verdict(failure_class=failure_class, evidence="", charged_to=CHARGES[failure_class], advice="")

    assert verdict.is_counted == (failure_class not in FREE)


def test_evidence_carries_the_workers_last_words() -> None:
    """The error that a worker wrote before it ended is part of the sentence."""
    verdict = classify(Evidence(exit_code=64, flight=make.flight(shard=None, detail="spec: maxLength\nof -1")))

    assert "of -1" in verdict.evidence
    assert verdict.is_permanent


def test_advice_of_configuration_says_what_to_mend() -> None:
    """A refused store, a missing Secret and a refused image have different remedies."""
    advice = {
        classify(Evidence(exit_code=69)).advice,
        classify(Evidence(waiting_reason="CreateContainerConfigError")).advice,
        classify(Evidence(waiting_reason="ErrImagePull", messages=("unauthorized",))).advice,
        classify(Evidence(exit_code=64)).advice,
    }

    assert len(advice) == 4


UNREACHED = {
    "refused": 's3://b: Could not connect to the endpoint URL: "https://b.s3.amazonaws.com/out/g0001/plan.json"',
    "no answer": 's3://b: Connect timeout on endpoint URL: "http://store:9000/b"',
    "Google": "https://storage.googleapis.com: Failed to resolve 'storage.googleapis.com' ([Errno -2] unknown)",
    "a private endpoint": "http://gcs:80: Failed to establish a new connection: [Errno 111] Connection refused",
}


@pytest.mark.parametrize("text", UNREACHED.values(), ids=UNREACHED)
def test_a_store_that_was_not_reached_is_advised_on(text: str) -> None:
    """Endpoint and network, also once it is a crash loop; a store that answers with errors is another matter."""
    detail = f"Unavailable: g0001/plan.json: gave up after 90 attempts in 180 s; last: {text}"
    verdict = classify(Evidence(exit_code=75, flight=make.flight(shard=None, exit_code=75, detail=detail)))
    slow = classify(Evidence(exit_code=75, flight=make.flight(shard=None, exit_code=75, detail="s3://b answered 503")))
    deaths = tuple(Death(at=make.NOW, signature="75", shard=None) for _ in range(3))
    loop = escalated(verdict, deaths[0], deaths=deaths[1:], num_kills=0, policy=FailurePolicy())

    assert verdict.failure_class is FailureClass.TRANSIENT
    assert loop.failure_class is FailureClass.CRASH_LOOP
    assert "AWS_ENDPOINT_URL_S3" in verdict.advice
    assert "NetworkPolicy" in verdict.advice
    assert loop.advice == verdict.advice
    assert slow.advice == ADVICE[FailureClass.TRANSIENT]


def test_advice_for_a_refused_spec_says_how_to_go_on() -> None:
    """An unchanged run that is applied again is no change for the controller, so `retry` is named."""
    advice = classify(Evidence(exit_code=64)).advice

    assert "apply the run again, or 'inferencerun retry'" in advice


@given(
    st.builds(
        Evidence,
        exit_code=st.none() | st.integers(0, 255),
        signal=st.none() | st.integers(1, 64),
        container_reason=st.sampled_from(["", "Error", "OOMKilled", "Unknown"]) | st.text(max_size=8),
        waiting_reason=st.sampled_from(["", "ErrImagePull"]) | st.text(max_size=8),
        pod_reason=st.sampled_from(["", "Evicted", "Terminated"]) | st.text(max_size=8),
        disruption_reason=st.sampled_from(["", "TerminationByKubelet"]),
        messages=st.lists(st.text(max_size=30), max_size=2).map(tuple),
        intent=st.none() | st.sampled_from(Intent),
        has_deletion_timestamp=st.booleans(),
        has_started=st.booleans(),
        is_vanished=st.booleans(),
        is_spot_node=st.booleans(),
        node_state=st.sampled_from(NodeState),
        flight=st.none()
        | st.builds(
            Flight, shard=st.none() | st.integers(0, 1), epoch=st.integers(1, 2), first=st.none() | st.integers(0, 9)
        ),
    ),
    st.sampled_from([None, HELD]),
)
def test_never_raises_and_never_calls_unfinished_work_done(seen: Evidence, manifest: ShardManifest | None) -> None:
    """Whatever the evidence, there is a verdict with a sentence; a worker that holds a shard is never Done."""
    verdict = classify(seen, manifest)

    assert verdict.evidence
    assert manifest is None or verdict.failure_class is not FailureClass.DONE


def test_in_flight_leaves_out_what_is_settled() -> None:
    """Records that were committed since the flight recorder was written are above suspicion."""
    assert in_flight(make.flight(10, 30), make.held(done=20)) == ((20, 30),)


@pytest.mark.parametrize(
    "flight", [None, make.flight(), make.flight(1, 2, shard=3), make.flight(1, 2, epoch=2), replace(BATCH, next=None)]
)
def test_in_flight_is_empty_for_another_shard_or_epoch(flight: Flight | None) -> None:
    """Only a batch of this very shard and epoch is in flight."""
    assert in_flight(flight, HELD) == ()


def _death(seconds: float, shard: int | None = None, how: str = "1") -> Death:
    return Death(at=make.later(seconds), signature=how, shard=shard)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ((_death(0), _death(10)), True),
        ((_death(0, 1), _death(10, 2)), True),
        ((_death(10),), False),
        ((_death(0), _death(10, how="2")), False),
        ((_death(-600), _death(10)), False),
    ],
)
def test_crash_loop(before: tuple[Death, ...], expected: bool) -> None:  # noqa: FBT001
    """Three equal deaths within ten minutes are a crash loop; two, different ones, or old ones are not."""
    assert is_crash_loop(_death(20), deaths=before, policy=CrashLoopPolicy()) is expected


def test_deaths_of_a_single_shard_are_no_crash_loop() -> None:
    """A bad shard spends its own budget; the others go on."""
    deaths = (_death(0, 5), _death(10, 5), _death(20, 5))

    assert not is_crash_loop(_death(30, 5), deaths=deaths, policy=CrashLoopPolicy())


def test_escalation_to_crash_loop_opens_for_the_run() -> None:
    """The third equal death that nothing explains is charged to the run, for good."""
    verdict = classify(Evidence(exit_code=1))

    found = escalated(verdict, _death(20), deaths=(_death(0), _death(10)), num_kills=0, policy=FailurePolicy())

    assert (found.failure_class, found.charged_to, found.is_permanent) == (FailureClass.CRASH_LOOP, Charge.RUN, True)


def test_out_of_memory_is_no_crash_loop() -> None:
    """A class that has its own remedy keeps it, however often it comes."""
    verdict = classify(Evidence(exit_code=78), HELD)

    found = escalated(verdict, _death(20), deaths=(_death(0), _death(10)), num_kills=0, policy=FailurePolicy())

    assert found is verdict


@pytest.mark.parametrize(("num_kills", "expected"), [(20, FailureClass.NODE_LOST), (21, FailureClass.TRANSIENT)])
def test_kills_from_outside_count_once_there_are_too_many(num_kills: int, expected: FailureClass) -> None:
    """A kernel that kills for memory without saying so cannot go on for ever under the name of a lost node."""
    verdict = classify(Evidence(signal=9), HELD)

    found = escalated(verdict, _death(0), deaths=(), num_kills=num_kills, policy=FailurePolicy())

    assert found.failure_class is expected


def test_signature_tells_ends_apart_but_not_their_texts() -> None:
    """Two ends are equal when code and reasons are, whatever the messages say."""
    one, other = Evidence(exit_code=1, messages=("at 0x1",)), Evidence(exit_code=1, messages=("at 0x2",))

    assert signature(one) == signature(other) != signature(Evidence(exit_code=2))
    assert signature(Evidence(signal=9)) == signature(Evidence(exit_code=137))


def test_a_full_disk_is_told_from_a_store_that_does_not_answer() -> None:
    """A worker whose disk is full ends with 75, as one whose store is away: its last words say which."""
    full = "OutcomeUnknown: g0001/data/00001/e0001-000000.pt: [Errno 28] No space left on device"
    verdict = classify(Evidence(exit_code=75, flight=make.flight(exit_code=75, detail=full)))
    other = classify(Evidence(exit_code=75, flight=make.flight(exit_code=75, detail="Unavailable: 503")))

    assert verdict.failure_class is FailureClass.DISK_PRESSURE
    assert "No space left on device" in verdict.evidence
    assert other.failure_class is FailureClass.TRANSIENT
