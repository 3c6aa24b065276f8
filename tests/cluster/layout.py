"""What one cluster owns on this machine: its number, addresses, ports, folders, control groups. Pure values.

A cluster has a number K, and with it the addresses 10.K.0.0/16:

    10.K.0.1    the `kubernetes` Service. There is no kube-proxy: the address itself lies on the machine's `lo`, and port
                443 of it is passed on to the API server. So `KUBERNETES_SERVICE_HOST`, which the kubelet sets in every
                container, works as it stands, in pods with and without a network of their own.
    10.K.N.1    node N: its bridge, its kubelet, its pods with `hostNetwork`
    10.K.N.2..  the pods of node N that have a network of their own

Everything else listens on 127.0.0.1.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
MAX_NODES = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Chosen among the free ones, once for the cluster's life."""

    etcd_client: int
    etcd_peer: int
    apiserver: int
    controller_manager: int
    scheduler: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Everything that is fixed when the cluster starts."""

    directory: Path
    number: int
    ports: Ports
    token: str = field(repr=False)
    """Bearer token of the administrator, who is also every component."""

    @property
    def name(self) -> str:
        """Prefix of whatever the cluster makes in the machine's name spaces: control groups and interfaces."""
        return f"irt{self.number}"

    @property
    def service_range(self) -> str:
        """Cluster addresses of Services."""
        return f"10.{self.number}.0.0/24"

    @property
    def service_address(self) -> str:
        """Address of the `kubernetes` Service: the first of the range, by definition of the API server."""
        return f"10.{self.number}.0.1"

    @property
    def apiserver_url(self) -> str:
        """Where clients on this machine reach the API server."""
        return f"https://{LOOPBACK}:{self.ports.apiserver}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.directory / "kubeconfig"

    @property
    def certificates(self) -> Path:
        """The API server's own certificate, the key of the service accounts, the client certificate for kubelets."""
        return self.directory / "certificates"

    @property
    def apiserver_certificate(self) -> Path:
        """Self-signed, made by the API server when it first starts."""
        return self.certificates / "apiserver.crt"

    @property
    def audit_log(self) -> Path:
        """What service accounts have asked the API server for: one JSON event a line."""
        return self.logs / "audit.log"

    @property
    def logs(self) -> Path:
        """One file for each daemon; kept when the cluster is taken down."""
        return self.directory / "logs"

    def to_json(self) -> dict[str, Any]:
        """For the state file."""
        return {**asdict(self), "directory": str(self.directory)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Layout:
        """The inverse of `to_json`."""
        return Layout(**{**value, "directory": Path(value["directory"]), "ports": Ports(**value["ports"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLayout:
    """What one node owns. `index` is 1 for the first node and is never used twice."""

    cluster: Layout
    name: str
    index: int
    kubelet_port: int
    healthz_port: int

    @property
    def directory(self) -> Path:
        """Backs the fixed folders of kubelet, containerd and the network plugins, which only this node sees."""
        return self.cluster.directory / "nodes" / self.name

    @property
    def bridge(self) -> str:
        """Interface (15 characters at most)."""
        return f"{self.cluster.name}n{self.index}"

    @property
    def address(self) -> str:
        """The node's own, on the bridge."""
        return f"10.{self.cluster.number}.{self.index}.1"

    @property
    def pod_range(self) -> str:
        """Of the pods with a network of their own."""
        return f"10.{self.cluster.number}.{self.index}.0/24"

    @property
    def cgroup(self) -> str:
        """Path below the root of every hierarchy. Kubelets that shared one would kill each other's containers."""
        return f"/{self.cluster.name}/{self.name}"

    @property
    def containerd_socket(self) -> Path:
        """As seen from outside the node."""
        return self.directory / "run-containerd" / "containerd.sock"

    @property
    def kubelet_config(self) -> Path:
        """Its path also tells this kubelet from others in the list of processes."""
        return self.directory / "kubelet.json"

    @property
    def kubelet_log(self) -> Path:
        """Of the kubelet alone."""
        return self.cluster.logs / f"{self.name}-kubelet.log"

    @property
    def containerd_log(self) -> Path:
        """Of containerd and its shims."""
        return self.cluster.logs / f"{self.name}-containerd.log"


def kubeconfig_text(server: str, certificate: str, token: str) -> str:
    """A kubeconfig in JSON, which is YAML. `certificate` is base64 of the PEM text."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority-data": certificate}}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        },
        indent=1,
    )
