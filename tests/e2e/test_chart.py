"""The chart on a real API server, through Helm's own engine: taken, upgraded, rolled back, gone.

A cluster without nodes is enough: what the controller does to pods shows in their objects, and it runs here as a process,
with the token of the service account that the chart made and no other right.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.dynamic
import pytest
from helm_python import Config, HelmError
from kubernetes.client.exceptions import ApiException

from tests.chart import rendering
from tests.chart.rendering import CHART, NAMESPACE, RELEASE, objects
from tests.chart.value_sets import MONITORS, VALUE_SETS
from tests.cluster.cluster import Cluster
from tests.e2e.access import controller_kubeconfig
from tests.e2e.operator import Api, ControllerProcess, controller_environment, end, resource, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CRD = "inferenceruns.inferencerun.dev"
RUNS = ("inferencerun.dev", "v1alpha1")
NAMESPACES = (NAMESPACE, "proteins", "texts", "a", "grafana")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server with the controllers of Kubernetes, and no node."""
    with Cluster(tmp_path_factory.mktemp("chart"), nodes=0) as found:
        for name in NAMESPACES:
            found.core.create_namespace({"metadata": {"name": name}})
        yield found


@pytest.fixture(scope="module")
def api(server: Cluster) -> Api:
    """Its API."""
    return Api(server.kubeconfig)


@pytest.fixture
def helm(server: Cluster, api: Api) -> Iterator[Config]:
    """Helm; releases and the resource's definition are removed afterwards."""
    with Config(kubeconfig_path=server.kubeconfig, namespace=NAMESPACE) as found:
        yield found
        for release in found.list(all_states=True):
            found.uninstall(release["name"])
    if has_definition(api):
        api.extensions.delete_custom_resource_definition(CRD)
        wait_for(lambda: not has_definition(api), "the definition to go", patience_s=60)


def has_definition(api: Api) -> bool:
    """Whether the CRD is there."""
    return CRD in [item.metadata.name for item in api.extensions.list_custom_resource_definition().items]


def of_release(api: Api) -> set[tuple[str, str]]:
    """(kind, name) of everything that carries the release's label."""
    dynamic = kubernetes.dynamic.DynamicClient(api.core.api_client)
    kinds = {(item["apiVersion"], item["kind"]) for item in objects(kubernetes="v1.20.0")}
    label = f"app.kubernetes.io/instance={RELEASE}"
    return {
        (kind, item.metadata.name)
        for version, kind in kinds - {("apiextensions.k8s.io/v1", "CustomResourceDefinition")}
        for item in dynamic.resources.get(api_version=version, kind=kind).get(label_selector=label).items
    }


@pytest.fixture
def controller(server: Cluster, tmp_path: Path) -> Iterator[Callable[..., ControllerProcess]]:
    """Starts a controller with the rights of the service account of the chart's making, and no others."""
    with contextlib.ExitStack() as stack:

        def start(**settings: str) -> ControllerProcess:
            kubeconfig = controller_kubeconfig(server.kubeconfig, tmp_path / "kubeconfig")
            found = ControllerProcess(controller_environment(kubeconfig, {}, **settings), tmp_path / "controller.log")
            stack.enter_context(found.running())
            return found

        yield start


def a_run(directory: Path, name: str, namespace: str = "default") -> dict[str, Any]:
    """A run over two records, its store in a folder of this machine."""
    directory.mkdir(exist_ok=True)
    (directory / "in.fasta").write_text(">a\nMKV\n>b\nMKL\n")
    found = resource(name, [str(directory / "in.fasta")], str(directory / "out"), "http://127.0.0.1:9")
    found["metadata"]["namespace"] = namespace
    found["spec"]["input"]["shardBytes"] = 8
    return found


def pods_of(api: Api, namespace: str = "default") -> list[Any]:
    """Pods of workers."""
    selector = "app.kubernetes.io/managed-by=inferencerun-operator"
    return list(api.core.list_namespaced_pod(namespace, label_selector=selector).items)


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS.keys())
def test_the_server_takes_each_object(values: dict[str, Any], server: Cluster, api: Api) -> None:
    """A dry run of every object that the chart makes of every set of values, but for what this server has no API for."""
    version = kubernetes.client.VersionApi(api.core.api_client).get_code().git_version
    dynamic = kubernetes.dynamic.DynamicClient(server.client)
    found = [item for item in objects(values, kubernetes=version, apis=(MONITORS,)) if item["apiVersion"] != MONITORS]
    refused = []
    for item in found:
        kind = dynamic.resources.get(api_version=item["apiVersion"], kind=item["kind"])
        try:
            kind.create(item, namespace=item["metadata"].get("namespace"), dry_run="All")
        except ApiException as error:
            refused.append((item["kind"], item["metadata"]["name"], error.body))

    assert len(found) >= 5
    assert refused == []


def test_install_upgrade_rollback_uninstall(helm: Config, api: Api) -> None:
    """Each leaves what its values say; nothing but the resource's definition stays at the end."""

    def deployed() -> tuple[int, str, bool]:
        apps, policy = kubernetes.client.AppsV1Api(api.core.api_client), of_release(api)
        found = apps.read_namespaced_deployment(RELEASE, NAMESPACE)
        image = found.spec.template.spec.containers[0].image
        return found.spec.replicas, image, ("PodDisruptionBudget", RELEASE) in policy

    helm.install(CHART, RELEASE)
    first = deployed()
    helm.upgrade(CHART, RELEASE, {"controller": {"replicas": 1, "image": {"tag": "2"}}})
    second = deployed()
    helm.rollback(RELEASE)
    third = deployed()
    helm.uninstall(RELEASE)

    assert first == third == (2, "inferencerun-controller:0.1.0", True)
    assert second == (1, "inferencerun-controller:2", False)
    wait_for(lambda: not of_release(api), "everything to go", patience_s=60, why=lambda: of_release(api))
    assert has_definition(api)


def test_the_definition_is_upgraded_with_the_chart(helm: Config, api: Api, tmp_path: Path) -> None:
    """An upgrade replaces that of an older chart, and a release that comes after an uninstallation takes it over."""
    older = tmp_path / "older"
    shutil.copytree(CHART, older)
    template = older / "templates/crd.yaml"
    template.write_text(template.read_text().replace("shortNames: [irun]", "shortNames: [older]"))

    def short_names() -> list[str]:
        found = api.extensions.read_custom_resource_definition(CRD)
        return list(found.spec.names.short_names)

    helm.install(older, RELEASE)
    before = short_names()
    helm.upgrade(CHART, RELEASE)
    upgraded = short_names()
    helm.uninstall(RELEASE)
    helm.install(older, RELEASE)

    assert before == short_names() == ["older"]
    assert upgraded == ["irun"]


def test_a_mistyped_value_stops_the_installation(helm: Config, api: Api) -> None:
    """Nothing is created, and the message names the value."""
    with pytest.raises(HelmError, match="replicasCount"):
        helm.install(CHART, RELEASE, {"controller": {"replicasCount": 3}})

    assert of_release(api) == set()
    assert not has_definition(api)


def test_uninstalling_leaves_nobody_stuck(
    helm: Config, api: Api, controller: Callable[..., ControllerProcess], tmp_path: Path
) -> None:
    """A run with pods outlives the controller, and can be deleted without it; its pods go with it."""
    helm.install(CHART, RELEASE)
    running = controller()
    wait_for(api._is_served, "the definition to be served", patience_s=30)
    api.apply(a_run(tmp_path / "run", "left"))
    wait_for(lambda: len(pods_of(api)) == 2, "two pods", patience_s=60, why=lambda: api.status("left"))
    running.kill()
    helm.uninstall(RELEASE)
    kept, pods = api.run("left"), pods_of(api)
    api.delete("left")
    wait_for(lambda: api.run("left") is None, "the run to go", patience_s=90, why=lambda: api.run("left"))

    assert kept is not None
    assert len(pods) == 2
    wait_for(lambda: pods_of(api) == [], "its pods to go", patience_s=60)


def test_an_installation_for_one_namespace(
    helm: Config, api: Api, controller: Callable[..., ControllerProcess], tmp_path: Path
) -> None:
    """Without any ClusterRole the controller works there, asks for nothing it may not have, and leaves others alone."""
    api.install_crd(rendering.ROOT / "deploy/crd.yaml")
    values = {"controller": {"watchNamespace": "proteins"}, "rbac": {"nodes": False, "aggregate": False}}
    helm.install(CHART, RELEASE, {**values, "crds": {"install": False}})
    found = controller(watch_namespace="proteins", watch_nodes="false")
    api.custom.create_namespaced_custom_object(
        *RUNS, "proteins", "inferenceruns", a_run(tmp_path / "a", "mine", "proteins")
    )
    api.apply(a_run(tmp_path / "b", "another"))
    wait_for(lambda: len(pods_of(api, "proteins")) == 2, "two pods", patience_s=60, why=found.lines)
    status = api.custom.get_namespaced_custom_object(*RUNS, "proteins", "inferenceruns", "mine")["status"]
    warnings = [line for line in found.lines() if line["level"] in {"warning", "error"}]
    cluster_wide = {kind for kind, _ in of_release(api) if kind.startswith("Cluster")}
    api.custom.delete_namespaced_custom_object(*RUNS, "proteins", "inferenceruns", "mine")
    api.delete("another", waits_for_pods=False)

    assert status["shards"]["total"] == 2
    assert api.status("another") == {}
    assert pods_of(api) == []
    assert warnings == [], json.dumps(warnings, indent=1)
    assert cluster_wide == set()


def test_a_controller_that_was_there_before_the_definition(
    helm: Config, api: Api, controller: Callable[..., ControllerProcess], tmp_path: Path
) -> None:
    """It is not ready, says why, and serves runs once they are defined, without being started anew."""
    helm.install(CHART, RELEASE, {"crds": {"install": False}})
    found = controller()
    wait_for(lambda: _says(found, "no definition of runs"), "it to say so", patience_s=30, why=found.lines)
    (port,) = re.findall(r", (\d+)\)", str(found.lines()[0]["addresses"]))
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz")
    api.install_crd(rendering.ROOT / "deploy/crd.yaml")
    api.apply(a_run(tmp_path / "run", "early"))
    # Sooner than by the list of runs that is made once a minute.
    wait_for(lambda: len(pods_of(api)) == 2, "two pods", patience_s=30, why=found.lines)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as ready:
        is_ready = ready.status == 200
    api.delete("early", waits_for_pods=False)

    assert refused.value.code == 503
    assert is_ready
    assert found.is_running


def _says(controller: ControllerProcess, message: str) -> bool:
    return any(line["message"] == message for line in controller.lines())


SELDOM = {
    ("inferencerun.dev", "inferenceruns/finalizers", "update"): "the server itself checks it when pods are created",
    ("inferencerun.dev", "inferenceruns", "get"): "somebody else has changed the run meanwhile",
    ("", "pods", "get"): "a shard's owner that no watch has shown, or a pod's name that is taken",
    ("", "pods/log", "get"): "a worker has ended badly",
    ("", "nodes", "get"): "a pod is on a node that is too new for the watch",
}
"""Rights that the life of one run need not use, and when they are used."""


def test_the_rights_are_those_that_are_used(
    helm: Config, api: Api, server: Cluster, controller: Callable[..., ControllerProcess], tmp_path: Path
) -> None:
    """By the server's own record of the life of a run: nothing asked for was refused, and nothing is granted in vain."""
    helm.install(CHART, RELEASE)
    found = controller()
    wait_for(api._is_served, "the definition to be served", patience_s=30)
    run = a_run(tmp_path / "run", "short")
    run["spec"] |= {"activeDeadlineSeconds": 3, "ttlSecondsAfterFinished": 1}
    api.apply(run)
    wait_for(lambda: pods_of(api), "pods", patience_s=60, why=found.lines)
    wait_for(lambda: api.run("short") is None, "the run to be over, and deleted", patience_s=60, why=found.lines)
    assert found.process is not None
    end(found.process)  # which gives up the Lease
    requests = server.requests_of(NAMESPACE, RELEASE)
    used = {(item.group, item.resource, item.verb) for item in requests if item.resource}
    granted = {
        (group, resource, verb)
        for item in objects({"rbac": {"aggregate": False}})
        for rule in item.get("rules") or []
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }

    assert [item for item in requests if not item.is_allowed] == []
    assert used <= granted
    assert granted - used <= SELDOM.keys()


def test_people_have_their_rights(helm: Config, api: Api) -> None:
    """Through the built-in roles: a viewer sees runs, an editor changes them, and neither writes a status."""
    helm.install(CHART, RELEASE)
    rbac = kubernetes.client.RbacAuthorizationV1Api(api.core.api_client)
    reviews = kubernetes.client.AuthorizationV1Api(api.core.api_client)
    for role in ("view", "edit"):
        body = {
            "metadata": {"name": f"test-{role}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": role}],
        }
        rbac.create_namespaced_role_binding("proteins", body)

    def may(user: str, verb: str, subresource: str = "") -> bool:
        attributes = {"group": "inferencerun.dev", "resource": "inferenceruns", "verb": verb, "namespace": "proteins"}
        spec = {"user": user, "resourceAttributes": {**attributes, "subresource": subresource}}
        review = reviews.create_subject_access_review({"spec": spec})
        return bool(review.status.allowed)

    wait_for(lambda: may("view", "list"), "the roles to be aggregated", patience_s=30)

    assert not may("view", "create")
    assert may("edit", "create")
    assert may("edit", "patch", "scale")
    assert not may("edit", "patch", "status")
