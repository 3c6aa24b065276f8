"""Tests of `doctor`: what it fetches, what it makes of it, and that nothing which may not be seen stops it."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.kubectl.diagnosis.diagnose import diagnose
from cli.kubectl.facts import (
    SPEC_FIELDS,
    STATUS_FIELDS,
    ControllerPod,
    Definition,
    Facts,
    Pod,
    Store,
    read_controller_pod,
    read_definition,
    read_pod,
    read_run,
    read_silence,
)
from cli.kubectl.gathering import _input_problem, clock_skew_s, look_at_store
from contract.logs import STORE_BACK, STORE_SILENT, JsonFormatter
from contract.names import ANNOTATION_RETRY
from contract.store.local import LocalStore
from contract.store.memory import MemoryStore
from controller import ledger
from controller.memory import Death, Idle, RunMemory
from tests.chart import rendering
from tests.cli.kubectl.cluster import CREATED, NAMESPACE, RUNS, FakeCluster
from tests.cli.kubectl.test_commands import STATUS
from tests.cli.outputs import make_output
from tests.controller.api_server import refusal
from tests.controller.bench import RUN, Bench, bench

ROOT = Path(__file__).resolve().parents[3]
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferenceruns.inferencerun.dev"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/op/leases/inferencerun-operator"
DEPLOYMENT = "/apis/apps/v1/namespaces/op/deployments/inferencerun-operator"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
QUIET = {**STATUS, "quarantined": 0, "lastFailures": []}


def definition() -> dict[str, Any]:
    """The chart's, as a server has it."""
    (found,) = (item for item in yaml.safe_load_all((ROOT / "deploy/crd.yaml").read_text()) if item)
    return {**found, "status": {"conditions": [{"type": "Established", "status": "True"}]}}


def install(cluster: FakeCluster, *, renewed_s: float = 0) -> None:
    """An operator, whose leader has renewed its Lease so long ago."""
    at = datetime.now(UTC) - timedelta(seconds=renewed_s)
    cluster.server.put(CRD, {**definition(), "metadata": {"name": "x"}})
    cluster.server.put(
        LEASE,
        {
            "metadata": {"namespace": "op"},
            "spec": {"holderIdentity": "ctl-0", "renewTime": at.isoformat(), "leaseDurationSeconds": 15},
        },
    )
    cluster.server.put(
        DEPLOYMENT, {"metadata": {"namespace": "op"}, "spec": {"replicas": 2}, "status": {"readyReplicas": 1}}
    )


def codes(found: dict[str, Any]) -> list[str]:
    """What was found."""
    return [item["code"] for item in found["findings"]]


def test_the_fields_of_the_definition_are_those_that_are_looked_for() -> None:
    """A definition that lacks one is old. A field that is new in the chart belongs into SPEC_FIELDS."""
    properties = rendering.schema()["properties"]

    assert set(properties["spec"]["properties"]) == SPEC_FIELDS
    assert set(properties["status"]["properties"]) == STATUS_FIELDS


def test_a_definition_that_is_old_is_read_as_such() -> None:
    """What it lacks, by path; another version is not served at all."""
    old, other = definition(), definition()
    del old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["resume"]
    other["spec"]["versions"][0]["name"] = "v1"

    assert read_definition(definition()) == Definition()
    assert read_definition(old).missing == {"spec.resume"}
    assert not read_definition(other).is_served


def test_a_run_at_work_is_well(cluster: FakeCluster) -> None:
    """Exit code 0, and how it stands."""
    install(cluster)
    cluster.apply(**QUIET)
    cluster.add_pod(0)

    result = cluster.run("doctor", "swissprot", "--no-store")

    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "proteins/swissprot: Running, 50.0 %, 812 records/s, ETA 3 min 05 s; 1 of 2 workers ready",
        "Nothing is wrong, as far as can be seen.",
    ]


def test_findings_are_exit_code_1(cluster: FakeCluster) -> None:
    """With what was seen and what to do; notes alone are none."""
    install(cluster, renewed_s=600)
    cluster.apply(**QUIET)

    result = cluster.run("doctor", "swissprot", "--no-store")

    assert result.exit_code == 1
    assert "1. [stops] No controller is at work" in result.stdout
    assert "Lease op/inferencerun-operator of ctl-0 was renewed 10 min" in result.stdout
    assert "Deployment op/inferencerun-operator: 1 of 2 ready" in result.stdout
    assert "   do:   kubectl describe pods -n op" in result.stdout


def test_without_a_name_the_installation_is_looked_at(cluster: FakeCluster) -> None:
    """Nothing of any run."""
    missing = cluster.run_json("doctor", exit_code=1)
    install(cluster)
    result = cluster.run("doctor")

    assert codes(missing) == ["NotInstalled"]
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Controller ctl-0 leads (Lease op/inferencerun-operator).")


def test_an_unknown_run_is_an_error(cluster: FakeCluster) -> None:
    """Not a finding: there is nothing to look at."""
    install(cluster)

    assert cluster.run("doctor", "nobody").exit_code == 64


def test_pods_nodes_and_events_are_looked_at(cluster: FakeCluster) -> None:
    """A refused pod, a pod without a node, and one without its Secret, each from what the API shows."""
    install(cluster)
    cluster.apply(**{**QUIET, "workers": {"desired": 3, "active": 2, "ready": 0}})
    cluster.server.put(
        "/api/v1/nodes/node-a", {"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    )
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
    }
    cluster.add_pod(0, node="", state="none", conditions=[unschedulable])
    pod = cluster.add_pod(1, state="CreateContainerConfigError")
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"] = 'secret "store" not found'
    at = datetime.now(UTC).isoformat()
    for number, of in enumerate(("swissprot", "other")):
        cluster.server.put(
            f"{EVENTS}/e{number}",
            {
                "metadata": {},
                "involvedObject": {"name": of},
                "reason": "FailedCreate",
                "message": f"pod x cannot be created: exceeded quota: {of}, requested: pods=1",
                "lastTimestamp": at,
            },
        )

    found = cluster.run_json("doctor", "swissprot", "--no-store", exit_code=1)

    assert codes(found) == ["QuotaExceeded", "NoGpuNodes", "SecretMissing"]
    assert "resourcequota swissprot" in found["findings"][0]["fix"]
    assert found["unseen"] == []


def test_what_may_not_be_seen_is_said(cluster: FakeCluster) -> None:
    """A user with rights in the namespace alone still gets what there shows."""
    install(cluster)
    cluster.apply(
        **{**QUIET, "conditions": [{"type": "Accepted", "status": "False", "reason": "Invalid", "message": "x"}]}
    )
    cluster.server.denied = frozenset({"patch inferenceruns", "get pods/log"})

    def fault(method: str, path: str) -> object:
        is_own = path.startswith((RUNS, "/apis/authorization.k8s.io", "/apis/inferencerun.dev"))
        return None if is_own else refusal(403, "Forbidden", "you may not")

    cluster.server.fault = fault  # type: ignore[assignment]
    cluster.server.put("/apis/inferencerun.dev/v1alpha1", {"metadata": {}})

    found = cluster.run_json("doctor", "swissprot", "--no-store", exit_code=1)

    assert codes(found) == ["YouMayNot", "NotAcceptedInvalid"]
    assert found["findings"][0]["evidence"] == "you may not patch inferenceruns; get pods/log"
    assert [item.partition(":")[0] for item in found["unseen"]] == [
        "the controllers' Deployment",
        "the controllers' Lease",
        "pods",
        "events",
        "nodes",
    ]


def test_shards_that_stall_are_found_in_the_store(cluster: FakeCluster, tmp_path: Path) -> None:
    """The output's manifests say who has been silent for how long."""
    made = make_output(tmp_path, stop_after={1: 2}, is_finished=False)
    install(cluster)
    cluster.apply(output=made.uri, **QUIET)
    cluster.add_pod(0)

    found = cluster.run_json("doctor", "swissprot", exit_code=1)

    assert codes(found) == ["Stalled"]
    assert "made-0 on node-a holds shard 1" in found["findings"][0]["evidence"]


@pytest.mark.parametrize("output", ["file:///nowhere", "out"])
def test_an_output_that_is_a_path_is_a_note(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """The pods may well have it; what lies there in the user's own working directory is another thing."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    install(cluster)
    cluster.apply(output=output, **QUIET)

    found = cluster.run_json("doctor", "swissprot")

    assert codes(found) == ["StoreUnseen"]
    assert found["findings"][0]["evidence"] == f"{output} is a path in the worker pods"


def test_an_input_that_is_a_path_is_not_looked_for_here() -> None:
    """Files of this machine are not those of the pods, whose output is in a bucket."""
    run = {"metadata": {"name": "x"}, "spec": {"input": {"uris": ["/nowhere"]}, "output": {"uri": "s3://bucket/out"}}}

    assert _input_problem(run) == ""


def test_a_look_at_the_store_that_breaks_is_told(monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster) -> None:
    """As what was seen, not as a traceback beside the findings."""

    def broken(_run: object) -> Store:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr("cli.kubectl.gathering.look_at_store", broken)
    install(cluster)
    cluster.apply(**QUIET)

    result = cluster.run("doctor", "swissprot")

    assert "ValueError: a mistake of ours" in result.stdout
    assert "Traceback" not in result.output


def memory(**changes: Any) -> str:
    """What the controller remembers, as the status holds it."""
    return ledger.to_text(ledger.Ledger(memory=replace(RunMemory(), **changes)))


def silent(seconds: float) -> str:
    """A line of a worker whose store does not answer."""
    record = logging.getLogger("worker").makeRecord(
        "worker",
        logging.WARNING,
        "",
        0,
        STORE_SILENT,
        (),
        None,
        extra={"store": "s3://b/out", "endpoint": "http://s3", "silent_s": seconds, "detail": "connection refused"},
    )
    return JsonFormatter(pod="swissprot-0-0").format(record)


def test_workers_that_do_not_reach_their_store_are_found_by_what_they_say(cluster: FakeCluster) -> None:
    """The controller knows since when they hold nothing, their log why; both long before the first of them gives up."""
    install(cluster)
    since = datetime.now(UTC) - timedelta(seconds=40)
    remembered = memory(idle=(Idle(uid="uid-swissprot-0-0", since=since),))
    cluster.apply(**{**QUIET, "shards": {"total": 4}, "memory": remembered})
    cluster.add_pod(0)
    cluster.server.logs["swissprot-0-0"] = f"plain\n{silent(11)}\n{silent(23)}\n"

    result = cluster.run("doctor", "swissprot", "--no-store")

    assert result.exit_code == 1
    assert "1 worker(s) have taken no shard for 40 s: the store does not answer them." in result.stdout
    assert "no answer from s3://b/out at http://s3 for 23 s: connection refused" in result.stdout
    assert result.stdout.splitlines()[4:10] == [
        "   do:   kubectl edit irun swissprot -n proteins   # spec.workers.template, for a store of your own:",
        "           spec:",
        "             containers:",
        "               - name: worker",
        '                 env: [{name: AWS_ENDPOINT_URL_S3, value: "http://HOST:PORT"}]',
        "         kubectl delete pod swissprot-0-0 -n proteins   # a worker keeps the template it was made with",
    ]


def test_a_store_that_answers_again_is_silent_no_more() -> None:
    """The last word counts; a log without any says nothing."""
    back = json.dumps({"message": STORE_BACK, "store": "s3://b/out"})

    assert read_silence("w", [silent(11).encode(), back.encode()]) is None
    assert read_silence("w", [b"not ours", b"[1]", b'{"message": "shard claimed"}']) is None
    found = read_silence("w", [silent(11).encode(), back.encode(), silent(12).encode()])
    assert found is not None
    assert found.silent_s == 12


def test_what_the_controller_remembers_bounds_what_hinders_now() -> None:
    """Failures since the last progress, and since somebody stepped in; all of them where the memory cannot be read."""
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    deaths = tuple(Death(at=at + timedelta(seconds=number), signature="1", shard=None) for number in range(2))
    resource = {"metadata": {"name": "x", "namespace": "n", "creationTimestamp": CREATED}}

    known = read_run({**resource, "status": {"memory": memory(deaths=deaths, started_at=at)}})
    forgiven = read_run({**resource, "status": {"memory": memory()}})
    damaged = read_run({**resource, "status": {"memory": "{"}})

    assert (known.failing_since, known.begun_at) == (at, at)
    assert (forgiven.failing_since, forgiven.begun_at) == (None, None)
    assert (damaged.failing_since, damaged.begun_at) == (damaged.created_at, None)


def test_what_a_controller_writes_is_what_doctor_reads(tmp_path: Path) -> None:
    """Since when a worker holds nothing; that its end hinders; and that it does no more once somebody has stepped in."""

    def seen(found: Bench) -> Facts:
        run, *pods = (
            {**item, "metadata": {"creationTimestamp": CREATED, **item["metadata"]}}
            for item in (found.server.objects[RUN], *found.pods)
        )
        return Facts(now=found.now, run=read_run(run), pods=tuple(map(read_pod, pods)))

    def told(found: Bench) -> list[tuple[str, str]]:
        return [(item.code, item.severity.value) for item in diagnose(seen(found))]

    async def scenario() -> None:
        async with bench(tmp_path, {"workers": {"count": 1}}) as found:
            await found.until(lambda: found.pods, "a worker")
            found.run_pod("run-0-0")
            await found.until(lambda: seen(found).run.idle, "it to be seen without a shard")  # type: ignore[union-attr]
            before = told(found)
            found.now += timedelta(seconds=130)

            assert before == []
            assert told(found) == [("NoShardTaken", "stops")]

            found.end_pod("run-0-0", exitCode=75, reason="Error")
            await found.until(lambda: ("WorkersTransient", "hinders") in told(found), "its end to be told")
            found.now += timedelta(seconds=1)
            resource = found.server.objects[RUN]
            annotations = {ANNOTATION_RETRY: found.now.isoformat()}
            found.change(RUN, metadata={**resource["metadata"], "annotations": annotations})
            await found.until(lambda: "WorkersTransient" not in dict(told(found)), "it to be history")

    asyncio.run(scenario())


def test_a_memory_that_cannot_be_read_is_passed_over_in_silence(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the controller's to count anew, and to say so."""
    install(cluster)
    cluster.apply(**{**QUIET, "memory": "zlib:damaged"})

    assert cluster.run("doctor", "swissprot", "--no-store").exit_code == 0
    assert not [item for item in caplog.records if item.name.startswith("controller")]


def test_a_controller_that_does_not_start_is_looked_at(cluster: FakeCluster) -> None:
    """By its pods where too few are ready, each with its container's own words."""
    install(cluster, renewed_s=600)
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "store-credentials" not found'}
    labels = {
        "app.kubernetes.io/part-of": "inferencerun-operator",
        "app.kubernetes.io/component": "controller",
    }
    statuses = [{"name": "controller", "image": "controller:1", "state": {"waiting": waiting}}]
    cluster.server.put(
        "/api/v1/namespaces/op/pods/ctl-0",
        {
            "metadata": {"name": "ctl-0", "namespace": "op", "labels": labels},
            "status": {"containerStatuses": statuses},
        },
    )
    cluster.server.put("/api/v1/namespaces/op/pods/other", {"metadata": {"name": "other", "namespace": "op"}})

    found = cluster.run_json("doctor", exit_code=1)

    assert codes(found) == ["ControllerDown"]
    assert "pod op/ctl-0 cannot start, secret 'store-credentials' does not exist" in found["findings"][0]["evidence"]
    assert found["findings"][0]["fix"].startswith("kubectl create secret generic store-credentials -n op")


READY = [{"type": "Ready", "status": "True"}]
LAST_WORDS = {"level": "error", "message": "cannot start", "detail": "port 8080: in use"}
ENDED = {"exitCode": 64, "reason": "Error", "message": "Traceback\nSpecError: no such setting\n"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"conditions": READY}, None),
        ({}, {}),
        (
            {
                "containerStatuses": [
                    {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": ENDED}}
                ]
            },
            {"waiting_reason": "CrashLoopBackOff", "last_end": "exit 64, Error, SpecError: no such setting"},
        ),
        (
            {"containerStatuses": [{"state": {"terminated": ENDED}}]},
            {"last_end": "exit 64, Error, SpecError: no such setting"},
        ),
        (
            {"containerStatuses": [{"state": {"terminated": {**ENDED, "message": json.dumps(LAST_WORDS)}}}]},
            {"last_end": "exit 64, Error, cannot start: port 8080: in use"},
        ),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]},
            {"unscheduled": "0/1 nodes"},
        ),
    ],
    ids=["ready", "new", "in a loop", "ended", "last line of a log", "without a node"],
)
def test_what_keeps_a_controller_is_read(status: dict[str, Any], expected: dict[str, str] | None) -> None:
    """Whatever of it the kubelet has written; one that is ready is kept by nothing."""
    found = read_controller_pod({"metadata": {"name": "ctl-0", "namespace": "op"}, "status": status})

    assert found == (None if expected is None else ControllerPod(namespace="op", name="ctl-0", **expected))


def test_a_worker_whose_init_container_runs_does_not_run_yet() -> None:
    """It is starting, and the image of what waits is named, not the worker's."""
    spec = {
        "nodeName": "node-a",
        "initContainers": [{"name": "weights", "image": "weights:1"}, {"name": "later", "image": "later:1"}],
        "containers": [{"name": "worker", "image": "worker:1"}],
    }
    waiting = {"state": {"waiting": {"reason": "PodInitializing"}}}
    worker = {"name": "worker", **waiting}

    def with_init(*states: dict[str, Any]) -> Pod:
        inits = [{"name": name, "state": state} for name, state in zip(("weights", "later"), states, strict=True)]
        status = {"initContainerStatuses": inits, "containerStatuses": [worker]}
        return read_pod({"metadata": {"name": "x", "creationTimestamp": CREATED}, "spec": spec, "status": status})

    busy = with_init({"running": {}}, {"waiting": {"reason": "PodInitializing"}})
    stuck = with_init({"terminated": {"exitCode": 0}}, {"waiting": {"reason": "ErrImagePull", "message": "no"}})

    assert (busy.is_running, busy.running_init, busy.has_ended, busy.waiting_reason) == (
        False,
        "weights",
        False,
        "PodInitializing",
    )
    assert (stuck.is_running, stuck.has_ended, stuck.waiting_reason, stuck.image) == (
        False,
        False,
        "ErrImagePull",
        "later:1",
    )


def test_an_input_that_names_nothing_is_found(tmp_path: Path) -> None:
    """Before the run has begun; later its plan counts."""
    (tmp_path / "out").mkdir()
    run = {
        "metadata": {"name": "x"},
        "spec": {"input": {"uris": [f"{tmp_path}/*.fasta"]}, "output": {"uri": str(tmp_path / "out")}},
    }

    assert "matches no object" in look_at_store(run).input_problem


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_the_stores_clock_is_compared_with_ours(kind: str, tmp_path: Path) -> None:
    """By an object that is put and listed, and removed again."""
    store = MemoryStore() if kind == "memory" else LocalStore(str(tmp_path))

    skew_s = clock_skew_s(store, "nonce")

    assert skew_s is not None
    assert abs(skew_s) < 5
    assert list(store.list()) == []


def test_labels_that_a_pod_asks_for_are_read() -> None:
    """From its node selector, and from an affinity without alternatives."""
    terms = [
        {
            "matchExpressions": [
                {"key": "spot", "operator": "In", "values": ["true"]},
                {"key": "x", "operator": "Exists"},
            ]
        }
    ]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    spec = {"nodeSelector": {"pool": "gpu"}, "affinity": affinity}

    found = read_pod({"metadata": {"name": "x", "creationTimestamp": CREATED}, "spec": spec})

    assert found.required_labels == (("pool", "gpu"), ("spot", "true"))
