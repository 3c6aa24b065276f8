"""The cluster that the tests of a session share, and what they do with pods.

cluster       our own, of two nodes, or the one that `E2E_KUBECONFIG` names
own_cluster   the same, for tests that kill nodes or stop the API server: fails where the cluster was given
namespace     a fresh one for each test, deleted after it
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes.client import ApiException

from tests.cluster.cluster import KUBECONFIG_VARIABLE, Cluster, GivenCluster
from tests.cluster.images import base_archive
from tests.cluster.processes import wait_until

_namespace_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GivenCluster]:
    """A cluster with the images that the tests use."""
    given = os.environ.get(KUBECONFIG_VARIABLE)
    if given:
        one = GivenCluster(Path(given))
        yield one
        one.close()
    else:
        with Cluster(tmp_path_factory.mktemp("cluster"), nodes=2) as own:
            own.load_image(base_archive())
            yield own


@pytest.fixture(scope="session")
def own_cluster(cluster: GivenCluster) -> Cluster:
    """The session's cluster, if it is ours."""
    if not isinstance(cluster, Cluster):
        pytest.fail(f"this test kills parts of the cluster: unset {KUBECONFIG_VARIABLE} to run it")
    return cluster


@pytest.fixture
def namespace(cluster: GivenCluster) -> Iterator[str]:
    """Name of a fresh namespace in which pods can be made."""
    name = f"test-{os.getpid()}-{next(_namespace_numbers)}"
    cluster.core.create_namespace({"metadata": {"name": name}})  # type: ignore[arg-type]  # the client takes JSON as well
    wait_until(lambda: _has_service_account(cluster, name), f"the service account of {name}", 30)
    yield name
    cluster.core.delete_namespace(name)


def _has_service_account(cluster: GivenCluster, namespace: str) -> bool:
    try:
        cluster.core.read_namespaced_service_account("default", namespace)
    except ApiException as error:
        if error.status != 404:
            raise
        return False
    return True
