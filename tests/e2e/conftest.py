"""One cluster (`tests.cluster.fixtures`) and one store for all end-to-end tests; a controller and a run for each."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contract.layout import build_shards_prefix
from contract.store.s3 import S3Store
from tests.chart.rendering import NAMESPACE, RELEASE
from tests.cluster.cluster import Cluster
from tests.cluster.layout import LOOPBACK
from tests.cluster.machine import free_ports
from tests.e2e.access import controller_kubeconfig, install, uninstall
from tests.e2e.operator import Api, ControllerPod, resource, verified, wait_for
from tests.servers import S3Server

PROJECT = Path(__file__).resolve().parents[2]
PROTEINS = PROJECT / "examples/data/proteins.fasta"
_names = itertools.count(1)


@pytest.fixture(scope="session")
def cluster(own_cluster: Cluster, project_images: dict[str, str]) -> Cluster:
    """A cluster of two nodes that have the project's images."""
    assert project_images
    return own_cluster


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Api:
    """The cluster's API, with the CRD."""
    found = Api(cluster.kubeconfig)
    found.install_crd(PROJECT / "deploy/crd.yaml")
    return found


@dataclass
class Gate:
    """The only way to the store, for pods, controller and tests alike; it can be shut."""

    port: int
    store_port: int
    process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Let connections through."""
        listen = f"TCP-LISTEN:{self.port},bind={LOOPBACK},reuseaddr,fork,backlog=128"
        command = ["/usr/bin/socat", listen, f"TCP:{LOOPBACK}:{self.store_port}"]
        # A group of its own: there is a process for each connection.
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for(self._answers, "the way to the store to open", patience_s=30)

    def shut(self) -> None:
        """Break every connection and refuse new ones."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex((LOOPBACK, self.port)) == 0


@dataclass(frozen=True)
class Bucket:
    """A bucket with proteins, and where runs may write."""

    name: str
    server: S3Server
    gate: Gate

    def proteins(self, copies: int) -> list[str]:
        """URIs of `copies` objects of 200 real proteins each."""
        return [f"s3://{self.name}/in/{copy:03}.fasta" for copy in range(copies)]


@pytest.fixture(scope="session")
def bucket(s3_server: S3Server, cluster: Cluster) -> Iterator[Bucket]:
    """5,000 proteins in 25 objects."""
    assert cluster, "its packages bring socat"
    (port,) = free_ports(1)
    gate = Gate(port, s3_server.port)
    gate.open()
    server = S3Server(f"http://{LOOPBACK}:{port}")
    with pytest.MonkeyPatch.context() as patch:
        server.use(patch)
        name = server.new_bucket()
        store = S3Store(name, "")
        for copy in range(25):
            store.put_create(f"in/{copy:03}.fasta", PROTEINS.read_bytes())
        yield Bucket(name, server, gate)
    gate.shut()


@pytest.fixture(scope="session")
def installed(cluster: Cluster, api: Api, bucket: Bucket) -> Iterator[ControllerPod]:
    """The controller, from its image, as the chart installs it on the first node."""
    assert api, "the definition is there"
    (port,) = free_ports(1)
    uninstall(cluster.kubeconfig)  # of a session that was cut off
    install(cluster.kubeconfig, bucket.server.environment, node=cluster.node_names()[0], health_port=port)
    yield ControllerPod(cluster)
    requests = cluster.requests_of(NAMESPACE, RELEASE)
    uninstall(cluster.kubeconfig)  # which takes the rights before the controller
    allowed, refused = (
        {(item.group, item.resource, item.verb) for item in requests if item.is_allowed is is_allowed}
        for is_allowed in (True, False)
    )
    # A server that has just started refuses everything for a moment; what lacks is never allowed.
    assert refused - allowed == set(), "the chart grants all that the controller asks for"


@pytest.fixture
def controller(installed: ControllerPod) -> ControllerPod:
    """The controller, ready."""
    installed.start()
    return installed


@pytest.fixture
def no_controller(installed: ControllerPod) -> Iterator[ControllerPod]:
    """The chart's controller, scaled to zero for the test, which brings its own."""
    installed.stop()
    yield installed
    installed.start()


@pytest.fixture(scope="session")
def access(cluster: Cluster, installed: ControllerPod, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kubeconfig of the controller's own account."""
    assert installed, "the account is there"
    return controller_kubeconfig(cluster.kubeconfig, tmp_path_factory.mktemp("access") / "kubeconfig")


@dataclass
class Run:
    """A run of one test."""

    name: str
    output: str
    api: Api
    bucket: Bucket

    def apply(self, *, copies: int = 1, uris: list[str] | None = None, **changes: Any) -> dict[str, Any]:
        """Create it over `uris`, or over `copies` objects of 200 proteins each."""
        endpoint = self.bucket.server.endpoint_url
        uris = self.bucket.proteins(copies) if uris is None else uris
        return self.api.apply(resource(self.name, uris, self.output, endpoint, **changes))

    def verified(self) -> dict[str, Any]:
        """What `inferencerun verify` says."""
        return verified(self.output, {**os.environ, **self.bucket.server.environment})

    def status(self) -> dict[str, Any]:
        """Its status."""
        return self.api.status(self.name)

    def manifests(self) -> list[dict[str, Any]]:
        """The shard manifests of the first generation."""
        bucket, _, prefix = self.output.removeprefix("s3://").partition("/")
        store = S3Store(bucket, prefix, endpoint_url=self.bucket.server.endpoint_url)
        keys = sorted(item.key for item in store.list(build_shards_prefix(1)))
        return [json.loads(store.get(key).body) for key in keys]

    def wait_for_records(self, count: int) -> None:
        """Wait until so many records are done."""
        wait_for(
            lambda: (self.status().get("progress") or {}).get("records", 0) >= count,
            f"{count} records",
            why=self.status,
        )


@pytest.fixture
def run(api: Api, bucket: Bucket, installed: ControllerPod, request: pytest.FixtureRequest) -> Iterator[Run]:
    """A run's name and output; the run is deleted afterwards, by the chart's controller."""
    if "no_controller" not in request.fixturenames:
        installed.start()
    number = next(_names)
    found = Run(f"run-{os.getpid()}-{number}", f"s3://{bucket.name}/runs/{os.getpid()}-{number}", api, bucket)
    yield found
    installed.start()
    if api.run(found.name) is not None:
        api.delete(found.name, waits_for_pods=False)  # some may be on nodes that are lost
        wait_for(lambda: api.run(found.name) is None, f"run {found.name} to go", patience_s=90)
