"""The kubectl plug-in before a real API server: no nodes, no controller, statuses written by hand.

What it says of a run at work is seen in the tests with nodes; here is what only an API server can say: its words for what
is missing, refused or waits, its scale subresource, its rights.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml

from contract.names import ANNOTATION_RETRY
from contract.store.s3 import S3Store
from tests.cluster.cluster import Cluster
from tests.e2e.conftest import PROTEINS
from tests.e2e.operator import NAMESPACE, RUNS, Api, ControllerProcess, controller_environment, end, resource, wait_for
from tests.servers import S3Server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PROJECT = Path(__file__).resolve().parents[2]
_numbers = itertools.count(1)
STATUS = {
    "phase": "Running",
    "observedGeneration": 1,
    "progress": {"records": 10, "bytes": 500, "totalBytes": 1000, "percent": "50.0", "recordsPerSecond": "2.5"},
    "shards": {"total": 4, "complete": 1, "running": 2, "failed": 0},
    "workers": {"desired": 2, "active": 2, "ready": 2, "selector": "a=b"},
    "restarts": {"total": 0, "counted": 0, "byClass": {}},
    "quarantined": 0,
    "goodput": "0.90",
}


@dataclass
class Bare:
    """A control plane alone, with the definition."""

    kubeconfig: Path
    api: Api

    def plugin(self, *arguments: str, exit_code: int | None = 0, kubeconfig: Path | None = None) -> str:
        """Standard output of the plug-in, as a program of its own; on errors standard error. None = any exit code."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(
            [sys.executable, "-m", "cli.kubectl", *arguments],
            env={**environment, "KUBECONFIG": str(kubeconfig or self.kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert exit_code in {None, done.returncode}, f"{done.stdout}\n{done.stderr}"
        return done.stdout or done.stderr

    def doctor(self, name: str) -> dict[str, dict[str, Any]]:
        """What `doctor` finds, by code."""
        found = json.loads(self.plugin("doctor", name, "--no-store", "--json", exit_code=None))
        return {item["code"]: item for item in found["findings"]}

    def wait_for_finding(self, name: str, code: str) -> dict[str, Any]:
        """The finding of this code, once it is there."""
        found: dict[str, Any] = wait_for(
            lambda: self.doctor(name).get(code), f"finding {code}", patience_s=60, why=lambda: self.doctor(name)
        )
        return found

    def apply(self, name: str, **changes: Any) -> None:
        """A run whose store nobody reaches."""
        self.api.apply(resource(name, ["s3://bucket/in/"], f"s3://bucket/{name}", "http://127.0.0.1:9", **changes))

    def write_status(self, name: str, **status: Any) -> None:
        """What a controller would say of it."""
        body = {"status": {**STATUS, **status}}
        self.api.custom.patch_namespaced_custom_object_status(*RUNS, name, body)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """One for all tests of this file: an API server, the scheduler and the controllers of Kubernetes, no node."""
    with Cluster(tmp_path_factory.mktemp("bare"), nodes=0) as cluster:
        api = Api(cluster.kubeconfig)
        api.install_crd(PROJECT / "deploy/crd.yaml")
        yield Bare(cluster.kubeconfig, api)


@pytest.fixture(scope="module")
def own_bucket(s3_server: S3Server) -> str:
    """A bucket with one object of proteins. Not `bucket`, which is of the tests with nodes, and brings these."""
    with pytest.MonkeyPatch.context() as patch:
        s3_server.use(patch)
        name = s3_server.new_bucket()
        S3Store(name, "").put_create("in/000.fasta", PROTEINS.read_bytes())
    return name


@pytest.fixture(scope="module")
def controlled(bare: Bare, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """The same with a controller, whose Lease is that of the first test that asks."""
    log = tmp_path_factory.mktemp("controller") / "log"
    environment = controller_environment(bare.kubeconfig, s3_server.environment)
    bare.api.core.create_namespace({"metadata": {"name": "inferencerun"}})  # type: ignore[arg-type]
    controller = ControllerProcess(environment, log)
    controller.start()
    assert controller.process is not None
    yield bare
    end(controller.process)


@pytest.fixture
def started(controlled: Bare, own_bucket: str, s3_server: S3Server) -> Iterator[Callable[..., str]]:
    """Makes runs that a controller would work on; they are gone after the test."""
    names: list[str] = []

    def start(**changes: Any) -> str:
        name = f"doctored-{next(_numbers)}"
        uris, output = [f"s3://{own_bucket}/in/000.fasta"], f"s3://{own_bucket}/doctor/{name}"
        names.append(name)
        controlled.api.apply(resource(name, uris, output, s3_server.endpoint_url, **changes))
        return name

    yield start
    for name in names:
        controlled.api.delete(name)
    for name in names:
        wait_for(lambda name=name: controlled.api.run(name) is None, f"run {name} to go", patience_s=60)


def test_status_shows_what_the_controller_wrote(bare: Bare) -> None:
    """From the resource alone, with credentials for nothing else."""
    bare.apply("shown")
    bare.write_status("shown")

    text, fields = bare.plugin("status", "shown"), json.loads(bare.plugin("status", "shown", "--json"))

    assert "50.0 % of 1000 B" in text
    assert "Shards are not shown" in text
    assert fields["status"]["shards"]["total"] == 4


def test_scale_suspend_resume_and_retry_change_what_they_say(bare: Bare) -> None:
    """The scale subresource, the field `suspend`, the annotation; a status about the spec before is told as such."""
    bare.apply("steered")
    bare.write_status("steered")

    bare.plugin("scale", "steered", "5")
    bare.plugin("suspend", "steered")
    suspended = bare.api.run("steered")
    bare.plugin("resume", "steered")
    bare.plugin("retry", "steered", "--only-wake")
    resumed = bare.api.run("steered")

    assert suspended is not None
    assert resumed is not None
    assert suspended["spec"]["workers"]["count"] == 5
    assert (suspended["spec"]["suspend"], resumed["spec"]["suspend"]) == (True, False)
    assert resumed["metadata"]["annotations"][ANNOTATION_RETRY]
    assert "has not been looked at yet" in bare.plugin("status", "steered")


def test_the_servers_words_for_what_is_missing(bare: Bare) -> None:
    """A run that is not there, a number that is none, a store that asks for credentials."""
    bare.apply("words")

    assert f"no InferenceRun 'nobody' in namespace '{NAMESPACE}'" in bare.plugin("status", "nobody", exit_code=64)
    assert "words" in bare.plugin("scale", "words", "7")
    assert "your own credentials" in bare.plugin("shards", "words", exit_code=69)


def test_names_of_runs_are_completed(bare: Bare) -> None:
    """By the program that kubectl asks."""
    bare.apply("complete-me")
    done = subprocess.run(
        [sys.executable, "-c", "from cli.kubectl.complete import main; main()", "status", "complete-"],
        env={**os.environ, "KUBECONFIG": str(bare.kubeconfig)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.splitlines() == ["complete-me", ":4"]


def test_doctor_misses_the_controller(bare: Bare) -> None:
    """Before one has been started there is no Lease; with the definition alone nothing will ever happen."""
    bare.apply("alone")

    found = bare.doctor("alone")

    assert found["ControllerDown"]["severity"] == "stops"
    assert "no Lease" in found["ControllerDown"]["evidence"]


def test_doctor_finds_no_nodes(controlled: Bare, started: Callable[..., str]) -> None:
    """In the scheduler's words. The controller is there, and no finding any more."""
    name = started()

    found = controlled.wait_for_finding(name, "NoNodes")

    assert found["summary"] == "2 workers wait for a node: the cluster has no node at all."
    assert "ControllerDown" not in controlled.doctor(name)


def test_doctor_finds_a_quota(controlled: Bare, started: Callable[..., str]) -> None:
    """From the Event of the controller, whose pod the API server has refused."""
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    controlled.api.core.create_namespaced_resource_quota(NAMESPACE, quota)  # type: ignore[arg-type]
    try:
        wait_for(
            lambda: controlled.api.core.read_namespaced_resource_quota("few", NAMESPACE).status.used,
            "the quota to be counted",
            patience_s=60,
        )
        name = started()

        found = controlled.wait_for_finding(name, "QuotaExceeded")
    finally:
        controlled.api.core.delete_namespaced_resource_quota("few", NAMESPACE)

    assert "exceeded quota: few" in found["evidence"]
    assert "kubectl describe resourcequota few -n default" in found["fix"]


def test_doctor_finds_a_service_account_that_is_missing(controlled: Bare, started: Callable[..., str]) -> None:
    """By name."""
    template = {"spec": {"serviceAccountName": "nobody"}}
    name = started(workers={"count": 1, "gpusPerWorker": 0, "template": template})

    found = controlled.wait_for_finding(name, "ServiceAccountMissing")

    assert "kubectl create serviceaccount nobody -n default" in found["fix"]


def test_doctor_finds_what_the_user_wrote(controlled: Bare, started: Callable[..., str]) -> None:
    """A spec that is refused, an input that is not there, a run that is suspended."""
    wrong = started(checkpoint={"everySeconds": 100, "emergencySeconds": 50})
    empty = started(input={"uris": ["s3://no-such-bucket-here/in/"]})
    suspended = started(suspend=True)

    refused = controlled.wait_for_finding(wrong, "NotAcceptedInvalid")
    missing = controlled.wait_for_finding(empty, "NotPlannedAccessDenied")

    assert "emergencySeconds" in refused["evidence"]
    assert "no-such-bucket-here" in missing["evidence"]
    assert "kubectl inferencerun resume" in controlled.doctor(suspended)["Suspended"]["fix"]


def test_a_viewer_gets_what_the_namespace_shows(controlled: Bare, started: Callable[..., str]) -> None:
    """With the right to read one namespace: findings from there, and a list of what could not be looked at."""
    name = started()
    controlled.wait_for_finding(name, "NoNodes")
    kubeconfig = viewer(controlled)

    done = json.loads(controlled.plugin("doctor", name, "--no-store", "--json", kubeconfig=kubeconfig, exit_code=1))

    assert {item["code"] for item in done["findings"]} == {"YouMayNot", "NoNodes"}
    assert [item.partition(":")[0] for item in done["unseen"]] == [
        "the controllers' Deployment",
        "the controllers' Lease",
        "nodes",
    ]


def viewer(bare: Bare) -> Path:
    """A kubeconfig of somebody who may view runs, pods and events of the test namespace."""
    text = yaml.safe_load(bare.kubeconfig.read_text())
    rules = [
        {"apiGroups": ["inferencerun.dev"], "resources": ["inferenceruns"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["get", "list"]},
    ]
    role = {"metadata": {"name": "viewer"}, "rules": rules}
    rbac = kubernetes.client.RbacAuthorizationV1Api(bare.api.core.api_client)
    bare.api.core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "viewer"}})  # type: ignore[arg-type]
    rbac.create_namespaced_role(NAMESPACE, role)
    binding = {
        "metadata": {"name": "viewer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "viewer"},
        "subjects": [{"kind": "ServiceAccount", "name": "viewer", "namespace": NAMESPACE}],
    }
    rbac.create_namespaced_role_binding(NAMESPACE, binding)
    request = {"spec": {"audiences": []}}
    token = bare.api.core.create_namespaced_service_account_token("viewer", NAMESPACE, request)  # type: ignore[arg-type]
    text["users"][0]["user"] = {"token": token.status.token}
    target = bare.kubeconfig.with_name("viewer")
    target.write_text(yaml.safe_dump(text))
    return target
