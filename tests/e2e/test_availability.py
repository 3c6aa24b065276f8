"""Two controllers of one installation, as pods on two nodes: neither an eviction nor an upgrade leaves a gap."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import kubernetes.client
import pytest
from helm_python import Config
from kubernetes.client.exceptions import ApiException

from tests.chart.rendering import CHART
from tests.cluster.cluster import Cluster
from tests.e2e.access import image_values
from tests.e2e.operator import Api, evict, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

RELEASE = "pair-inferencerun-operator"
VALUES: dict[str, Any] = {
    "crds": {"install": False},
    "rbac": {"aggregate": False},
    "controller": {"image": image_values("controller"), "settings": {"leaseRetrySeconds": 0.5}},
    "worker": {"image": image_values("worker")},
}
LABEL = "app.kubernetes.io/instance=pair"


@pytest.fixture
def helm(cluster: Cluster, namespace: str) -> Iterator[Config]:
    """Helm, in the test's namespace."""
    with Config(kubeconfig_path=cluster.kubeconfig, namespace=namespace) as found:
        yield found
        found.uninstall("pair", ignore_not_found=True)


def test_two_controllers_of_one_installation(helm: Config, api: Api, namespace: str) -> None:
    """They spread, the budget lets one be evicted at a time, another leads at once, and an upgrade never has one less."""
    apps = kubernetes.client.AppsV1Api(api.core.api_client)
    leases = kubernetes.client.CoordinationV1Api(api.core.api_client)
    values = {**VALUES, "controller": {**VALUES["controller"], "watchNamespace": namespace}}

    def num_ready() -> int:
        return apps.read_namespaced_deployment(RELEASE, namespace).status.ready_replicas or 0

    def leader() -> str:
        try:
            return str(leases.read_namespaced_lease(RELEASE, namespace).spec.holder_identity or "")
        except ApiException as error:
            if error.status != 404:
                raise
            return ""

    def pods() -> dict[str, str]:
        found = api.core.list_namespaced_pod(namespace, label_selector=LABEL).items
        return {item.metadata.name: item.spec.node_name for item in found if item.metadata.deletion_timestamp is None}

    def state() -> list[Any]:
        found = api.core.list_namespaced_pod(namespace, label_selector=LABEL).items
        return [apps.read_namespaced_deployment(RELEASE, namespace).status, *(item.status for item in found)]

    def num_open_nodes() -> int:
        return sum(not node.spec.taints for node in api.core.list_node().items)

    wait_for(lambda: num_open_nodes() >= 2, "two nodes that take pods", patience_s=60)
    helm.install(CHART, "pair", values)
    wait_for(lambda: num_ready() == 2, "two controllers to be ready", patience_s=120, why=state)
    first, spread = wait_for(leader, "one to lead"), pods()
    evict(api, first, namespace=namespace)
    evicted_s = time.monotonic()
    (other,) = set(spread) - {first}
    with pytest.raises(ApiException) as refused:
        evict(api, other, namespace=namespace)
    # The replacement of the evicted one may be faster than the other: it starts within a second, and both ask twice in one.
    wait_for(lambda: leader() not in {"", first}, "another to lead", patience_s=60)
    took_s = time.monotonic() - evicted_s
    wait_for(lambda: num_ready() == 2, "two again", patience_s=60, why=state)
    older = pods().keys()
    helm.upgrade(CHART, "pair", {**values, "controller": {**values["controller"], "logLevel": "DEBUG"}})
    fewest = 2

    def is_upgraded() -> bool:
        nonlocal fewest
        fewest = min(fewest, num_ready())
        newer = pods().keys()
        return newer.isdisjoint(older) and len(newer) == 2 and leader() in newer

    wait_for(is_upgraded, "the upgrade", patience_s=120, why=state)

    assert len(set(spread.values())) == 2
    assert refused.value.status == 429
    assert took_s < 10  # it leaves the Lease when it ends; without that the other would wait for 15 s
    assert fewest == 2
