"""The cluster that the tests of a session share, and what they do with pods.

cluster       our own, of two nodes, or the one that `E2E_KUBECONFIG` names
own_cluster   the same, for tests that kill nodes or stop the API server: fails where the cluster was given
namespace     a fresh one for each test, deleted after it
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import KUBECONFIG_VARIABLE, Cluster, GivenCluster
from tests.cluster.images import TARGETS, base_archive, build_images, image_name
from tests.cluster.processes import wait_until

DIRECTORY_VARIABLE = "E2E_CLUSTER_DIRECTORY"

_namespace_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def any_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GivenCluster]:
    """A cluster whose nodes can run `BASE_IMAGE`."""
    given, directory = os.environ.get(KUBECONFIG_VARIABLE), os.environ.get(DIRECTORY_VARIABLE)
    if given:
        with contextlib.closing(GivenCluster(Path(given))) as one:
            yield one
    elif directory:
        with contextlib.closing(Cluster.attach(Path(directory))) as one:
            one.load_image(base_archive())
            yield one
    else:
        with Cluster(tmp_path_factory.mktemp("cluster"), nodes=2) as one:
            one.load_image(base_archive())
            yield one


@pytest.fixture(scope="session")
def own_cluster(any_cluster: GivenCluster) -> Cluster:
    """The session's cluster, if it is ours."""
    if not isinstance(any_cluster, Cluster):
        pytest.fail(f"this test needs the machines of the cluster: unset {KUBECONFIG_VARIABLE} to run it on our own")
    return any_cluster


@pytest.fixture(scope="session")
def project_images(any_cluster: GivenCluster) -> dict[str, str]:
    """Target of the Dockerfile -> image name. On our own cluster they are built and loaded now, from this source."""
    if isinstance(any_cluster, Cluster):
        # In the cluster's own folder, since nodes that are added in a later session want them too.
        for archive in build_images(any_cluster.directory / "images").values():
            any_cluster.load_image(archive)
    return {target: image_name(target) for target in TARGETS}


@pytest.fixture
def namespace(any_cluster: GivenCluster) -> Iterator[str]:
    """Name of a fresh namespace in which pods can be made."""
    name = f"test-{os.getpid()}-{next(_namespace_numbers)}"
    any_cluster.core.create_namespace({"metadata": {"name": name}})  # type: ignore[arg-type]  # the client takes JSON as well
    wait_until(lambda: any_cluster.takes_pods(name), f"namespace {name} to take pods", 30)
    yield name
    any_cluster.core.delete_namespace(name)
