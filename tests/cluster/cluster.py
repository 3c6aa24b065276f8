"""A cluster as tests use it: our own on this machine, or a whole one that somebody gives us.

    with Cluster(directory, nodes=2) as cluster:
        cluster.load_image(archive)
        cluster.kill_node("node1")

`Cluster.up` starts everything at once and waits until every node is Ready; `Cluster.down` ends and removes it all. What
runs is written to `cluster.json` in the cluster's folder, after each change, so that another process can take over
(`Cluster.attach`), above all to take it down.

Nothing here is thread-safe, and one process at a time changes a cluster.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException
from kubernetes.config import new_client_from_config
from urllib3.exceptions import HTTPError

from tests.cluster import control_plane, machine, node
from tests.cluster.binaries import Binaries, find_binaries
from tests.cluster.errors import ClusterError
from tests.cluster.images import pause_archive
from tests.cluster.layout import MAX_NODES, Layout, NodeLayout, Ports
from tests.cluster.packages import NODE_PACKAGES, ensure
from tests.cluster.processes import Daemon, is_running, kill, wait_until

GPU_RESOURCE = "nvidia.com/gpu"
KUBECONFIG_VARIABLE = "E2E_KUBECONFIG"

_PORT_NAMES = [field.name for field in fields(Ports)]


@dataclass(frozen=True)
class AuditedRequest:
    """A request as the API server has noted it."""

    group: str
    resource: str
    """With its subresource: `pods/log`."""
    verb: str
    is_allowed: bool

    @classmethod
    def of(cls, event: dict[str, Any]) -> AuditedRequest:
        """The request of an audit event; one for no resource, such as /apis, has an empty resource."""
        what = event.get("objectRef") or {}
        parts = [what[name] for name in ("resource", "subresource") if what.get(name)]
        decision = (event.get("annotations") or {}).get("authorization.k8s.io/decision")
        return cls(what.get("apiGroup", ""), "/".join(parts), event["verb"], decision != "forbid")


class GivenCluster:
    """A cluster that is not ours: what can be done through its API can be done."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._client: ApiClient | None = None

    @property
    def client(self) -> ApiClient:
        """The administrator's client, for any API of the `kubernetes` package."""
        if self._client is None:
            self._client = new_client_from_config(config_file=str(self.kubeconfig))  # type: ignore[no-untyped-call]
        return self._client

    @property
    def core(self) -> CoreV1Api:
        """Pods, nodes, namespaces."""
        return CoreV1Api(self.client)

    def plain(self, answer: object) -> dict[str, Any]:
        """An answer of the client as the API sent it."""
        plain: dict[str, Any] = self.client.sanitize_for_serialization(answer)  # type: ignore[no-untyped-call]
        return plain

    def close(self) -> None:
        """Close the client's connections; the cluster stays as it is."""
        if self._client is not None:
            self._client.close()  # type: ignore[no-untyped-call]
            self._client = None

    def node_names(self) -> list[str]:
        """Every node that the API server knows, in order."""
        nodes = self.plain(self.core.list_node())
        return sorted(one["metadata"]["name"] for one in nodes["items"])

    def is_node_ready(self, name: str) -> bool:
        """Whether the condition `Ready` of the node is `True`; False also while the API does not answer."""
        try:
            conditions = self._node_object(name)["status"].get("conditions", [])
        except (ApiException, HTTPError, OSError):
            return False
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def takes_pods(self, namespace: str) -> bool:
        """Whether pods can be made in a namespace: not before its service account is there, and has its token."""
        body = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "main", "image": "none"}]}}
        try:
            self.core.create_namespaced_pod(namespace, body, dry_run="All")  # type: ignore[arg-type]
        except ApiException as error:
            # 403: no account. 500, "retry": no token. 404: no namespace, or not yet, beside a cache.
            if error.status in {403, 404, 500}:
                return False
            raise
        return True

    def cordon(self, name: str, *, cordoned: bool = True) -> None:
        """Keep new pods away from a node, or let them in again."""
        self.core.patch_node(name, {"spec": {"unschedulable": cordoned}})

    def label(self, name: str, labels: dict[str, str | None]) -> None:
        """Set labels of a node; None removes one."""
        self.core.patch_node(name, {"metadata": {"labels": labels}})

    def taint(self, name: str, taints: list[dict[str, str]]) -> None:
        """Replace all taints of a node."""
        self.core.patch_node(name, {"spec": {"taints": taints}})

    def set_gpus(self, name: str, count: int) -> None:
        """Give a node `count` GPUs that are not there; scheduler and kubelet count them like others."""
        capacity = {GPU_RESOURCE: str(count)}
        self.core.patch_node_status(name, {"status": {"capacity": capacity, "allocatable": capacity}})
        wait_until(lambda: self._allocatable_gpus(name) == count, f"{name} to offer {count} GPUs", 60)

    def add_node(self) -> str:
        """Refused."""
        raise self._refusal("add a node")

    def kill_node(self, name: str) -> None:
        """Refused."""
        raise self._refusal(f"kill {name}")

    def remove_node(self, name: str) -> None:
        """Refused."""
        raise self._refusal(f"remove {name}")

    def pause_kubelet(self, name: str) -> None:
        """Refused."""
        raise self._refusal(f"stop the kubelet of {name}")

    def resume_kubelet(self, name: str) -> None:
        """Refused."""
        raise self._refusal(f"continue the kubelet of {name}")

    def stop_apiserver(self) -> None:
        """Refused."""
        raise self._refusal("stop the API server")

    def start_apiserver(self) -> None:
        """Refused."""
        raise self._refusal("start the API server")

    def load_image(self, archive: Path) -> None:
        """Refused."""
        raise self._refusal(f"import {archive}")

    def _node_object(self, name: str) -> dict[str, Any]:
        return self.plain(self.core.read_node(name, _request_timeout=10))

    def _allocatable_gpus(self, name: str) -> int:
        return int(self._node_object(name)["status"].get("allocatable", {}).get(GPU_RESOURCE, 0))

    def _refusal(self, what: str) -> ClusterError:
        return ClusterError(f"cannot {what}: this cluster was given by {KUBECONFIG_VARIABLE}; unset it to use our own")


class Cluster(GivenCluster):
    """A control plane and nodes on this machine. The caller chooses the folder and owns it."""

    def __init__(self, directory: Path, nodes: int = 1) -> None:
        self.directory = directory.absolute()
        self._initial_nodes = nodes
        self._layout: Layout | None = None
        self._binaries: Binaries | None = None
        self._nodes: dict[str, NodeLayout] = {}
        self._next_index = 1
        self._daemons: dict[str, Daemon] = {}
        self._images: list[str] = []
        self._kernel_settings: dict[str, str] = {}
        super().__init__(self.directory / "kubeconfig")

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def host_address(self) -> str:
        """An address of this machine that pods reach with and without a network of their own."""
        return self._running_layout.service_address

    @property
    def logs(self) -> Path:
        """Folder with one log for each daemon; it stays after `down`."""
        return self._running_layout.logs

    def up(self) -> None:
        """Start the control plane and the nodes, and wait until all are ready.

        Raises:
            ClusterError: something is missing on this machine or did not start. Nothing is left running.
        """
        if self._state_file.exists():
            raise ClusterError(f"{self.directory} holds a cluster already: take it down first, or choose another")
        if os.geteuid() != 0:
            raise ClusterError("a cluster needs root: containers, control groups, interfaces")
        self._binaries = find_binaries()
        ensure(NODE_PACKAGES)
        self._images = [str(pause_archive())]
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.down()
            raise

    @staticmethod
    def attach(directory: Path) -> Cluster:
        """The cluster that another process started in `directory`.

        Raises:
            ClusterError: there is none.
        """
        cluster = Cluster(directory)
        cluster._load()
        return cluster

    def down(self) -> None:
        """End every process, undo every change of the machine, delete all but the logs. Does nothing when all is down."""
        layout = self._layout
        if layout is None:
            return
        self.close()
        for name in [*self._nodes, *(name for name in self._daemons if name not in self._nodes)]:
            if name in self._daemons:
                kill(self._daemons.pop(name))
        for one in self._nodes.values():
            node.clean_up(one)
        machine.remove_cgroup(f"/{layout.name}")
        machine.release_number(layout)
        machine.restore_kernel_settings(self._kernel_settings)
        for left in ("nodes", "etcd", "certificates"):
            if (self.directory / left).exists():
                shutil.rmtree(self.directory / left)
        self.kubeconfig.unlink(missing_ok=True)
        self._state_file.unlink(missing_ok=True)
        self._nodes, self._layout = {}, None

    def add_node(self) -> str:
        """Start one more node, with every image loaded so far; returns its name once it is Ready."""
        one = self._start_node()
        self._wait_for_nodes([one])
        return one.name

    def kill_node(self, name: str) -> None:
        """SIGKILL every process of a node at once, as a power failure would. Its Node object stays."""
        node.kill_node(self._node(name), self._daemons.pop(name))
        self._save()

    def remove_node(self, name: str) -> None:
        """Kill a node if it runs, delete its Node object, and remove all that it had on the machine."""
        one = self._node(name)
        if name in self._daemons:
            self.kill_node(name)
        try:
            self.core.delete_node(name)
        except ApiException as error:
            if error.status != 404:
                raise
        node.clean_up(one)
        shutil.rmtree(one.directory)
        del self._nodes[name]
        self._save()

    def pause_kubelet(self, name: str) -> None:
        """Stop the kubelet: the cluster loses the node, its pods run on."""
        node.signal_kubelet(self._node(name), signal.SIGSTOP)

    def resume_kubelet(self, name: str) -> None:
        """Let a stopped kubelet go on."""
        node.signal_kubelet(self._node(name), signal.SIGCONT)

    def pod_output(self, name: str, uid: str) -> str:
        """What the containers of a pod have written, from the node's own files: its kubelet need not run."""
        return node.pod_output(self._node(name), uid)

    def kill_pod(self, name: str, uid: str) -> None:
        """SIGKILL the processes of a pod's containers, as a crash would. Its kubelet reports it as it sees fit."""
        node.kill_pod(self._node(name), uid)

    def stop_apiserver(self) -> None:
        """Kill the API server. Its database, and all pods, stay."""
        kill(self._daemons.pop(control_plane.APISERVER))
        self._save()

    def start_apiserver(self) -> None:
        """Start the API server again, at the same address, and wait until it is ready."""
        self._start_apiserver()
        control_plane.wait_ready(self._running_layout, self._watched())

    def requests_of(self, namespace: str, account: str) -> list[AuditedRequest]:
        """What a service account has asked the API server for so far, refused requests too."""
        user = f"system:serviceaccount:{namespace}:{account}"
        log = self._running_layout.audit_log
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be being written
        return [AuditedRequest.of(event) for event in events if event["user"]["username"] == user]

    def load_image(self, archive: Path) -> None:
        """Give every node, and those added later, the images of a docker archive. The file must stay where it is."""
        running = [one for one in self._nodes.values() if one.name in self._daemons]
        with ThreadPoolExecutor() as pool:
            for imported in [pool.submit(node.import_image, one, archive) for one in running]:
                imported.result()
        path = str(archive.absolute())
        if path not in self._images:
            self._images.append(path)
            self._save()

    @property
    def _state_file(self) -> Path:
        return self.directory / "cluster.json"

    @property
    def _running_layout(self) -> Layout:
        if self._layout is None:
            raise ClusterError(f"the cluster in {self.directory} is not up")
        return self._layout

    def _start(self) -> None:
        self._kernel_settings = machine.kernel_settings()
        layout = self._layout = Layout(
            directory=self.directory,
            ports=Ports(**dict(zip(_PORT_NAMES, machine.free_ports(len(_PORT_NAMES)), strict=True))),
            token=secrets.token_hex(16),
            number=machine.claim_number(),  # last: from here on there is something to undo
        )
        self._save()
        layout.logs.mkdir(exist_ok=True)
        control_plane.make_certificates(layout)
        binaries = self._running_binaries
        self._keep(control_plane.start_etcd(layout, binaries))
        self._start_apiserver()
        self._keep(control_plane.start_service_forwarder(layout))
        wait_until(layout.apiserver_certificate.exists, "the API server's certificate", 60, watched=self._watched())
        control_plane.write_kubeconfig(layout)
        # The nodes start while the API server does.
        started = [self._start_node() for _ in range(self._initial_nodes)]
        control_plane.wait_ready(layout, self._watched())
        # Ready before the controllers look at them. The node controller of 1.20 queues a node that begins as NotReady for a
        # taint again at each look and takes it out once: what is left stays at the head for ever (UniqueQueue.SetRemove
        # forgets the name alone), and of the nodes that are lost later some are never tainted, their pods never deleted.
        self._wait_for_nodes(started)
        self._keep(control_plane.start_controller_manager(layout, binaries))
        self._keep(control_plane.start_scheduler(layout, binaries))
        wait_until(lambda: self.takes_pods("default"), "the API server to take pods", 60, watched=self._watched())

    def _start_apiserver(self) -> None:
        self._keep(control_plane.start_apiserver(self._running_layout, self._running_binaries))

    def _start_node(self) -> NodeLayout:
        if self._next_index > MAX_NODES:
            raise ClusterError(f"a cluster can have {MAX_NODES} nodes in its life")
        kubelet_port, healthz_port = machine.free_ports(2)
        one = NodeLayout(
            cluster=self._running_layout,
            name=f"node{self._next_index}",
            index=self._next_index,
            kubelet_port=kubelet_port,
            healthz_port=healthz_port,
        )
        self._next_index += 1
        self._nodes[one.name] = one
        self._save()
        daemon = node.start_node(one, self._running_binaries)
        self._keep(daemon)
        node.wait_for_containerd(one, daemon)
        for image in self._images:
            node.import_image(one, Path(image))
        return one

    def _wait_for_nodes(self, nodes: list[NodeLayout]) -> None:
        for one in nodes:
            daemon = self._daemons[one.name]
            try:
                is_ready = functools.partial(self.is_node_ready, one.name)
                wait_until(is_ready, f"{one.name} to be Ready", 120, watched=[daemon])
            except ClusterError as error:
                raise ClusterError(f"{error}\n{_end(one.kubelet_log)}\n{_end(one.containerd_log)}") from error

    def _node(self, name: str) -> NodeLayout:
        if name not in self._nodes:
            raise ClusterError(f"no node {name!r}; there are {', '.join(self._nodes) or 'none'}")
        return self._nodes[name]

    @property
    def _running_binaries(self) -> Binaries:
        if self._binaries is None:
            self._binaries = find_binaries()
        return self._binaries

    def _keep(self, daemon: Daemon) -> None:
        self._daemons[daemon.name] = daemon
        self._save()

    def _watched(self) -> list[Daemon]:
        return list(self._daemons.values())

    def _save(self) -> None:
        if self._layout is None:
            return
        state = {
            "layout": self._layout.to_json(),
            "kernelSettings": self._kernel_settings,
            "nextIndex": self._next_index,
            "images": self._images,
            "nodes": [
                {name: value for name, value in asdict(one).items() if name != "cluster"}
                for one in self._nodes.values()
            ],
            "daemons": [{**asdict(daemon), "log": str(daemon.log)} for daemon in self._daemons.values()],
        }
        unfinished = self._state_file.with_suffix(".new")
        unfinished.touch(mode=0o600)
        unfinished.write_text(json.dumps(state, indent=1), encoding="utf-8")
        unfinished.rename(self._state_file)

    def _load(self) -> None:
        if not self._state_file.exists():
            raise ClusterError(f"no cluster in {self.directory}")
        state: dict[str, Any] = json.loads(self._state_file.read_text(encoding="utf-8"))
        self._layout = Layout.from_json(state["layout"])
        self._kernel_settings = state["kernelSettings"]
        self._next_index = state["nextIndex"]
        self._images = state["images"]
        self._nodes = {one["name"]: NodeLayout(cluster=self._layout, **one) for one in state["nodes"]}
        daemons = [Daemon(**{**one, "log": Path(one["log"])}) for one in state["daemons"]]
        self._daemons = {daemon.name: daemon for daemon in daemons if is_running(daemon)}


def _end(log: Path) -> str:
    content = log.read_bytes() if log.exists() else b""
    return f"--- {log}\n{content[-3000:].decode(errors='replace')}"
