"""Tests of `doctor`: what it fetches, what it makes of it, and that nothing which may not be seen stops it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.kubectl.facts import SPEC_FIELDS, STATUS_FIELDS, Definition, read_definition, read_pod
from cli.kubectl.gathering import clock_skew_s, look_at_store
from contract.store.local import LocalStore
from contract.store.memory import MemoryStore
from tests.chart import rendering
from tests.cli.kubectl.cluster import CREATED, NAMESPACE, RUNS, FakeCluster
from tests.cli.kubectl.test_commands import STATUS
from tests.cli.outputs import make_output
from tests.controller.api_server import refusal

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


def test_a_store_that_is_not_there_is_a_note(cluster: FakeCluster) -> None:
    """The workers may well reach it."""
    install(cluster)
    cluster.apply(output="file:///nowhere", **QUIET)

    found = cluster.run_json("doctor", "swissprot")

    assert codes(found) == ["StoreUnseen"]
    assert "is a path in the worker pods" in found["findings"][0]["evidence"]


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
