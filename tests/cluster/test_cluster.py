"""The harness keeps its word: what a real kubelet does happens, and nothing is left when a cluster is down."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import machine
from tests.cluster.cluster import GPU_RESOURCE, Cluster, GivenCluster
from tests.cluster.errors import ClusterError
from tests.cluster.images import BASE_IMAGE, base_archive
from tests.cluster.processes import wait_until
from tests.cluster.programs import run, timed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

# Whether the address in argument 1 answers on the port in argument 2, over the path that pods use.
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 10).close()"
# As in-cluster clients do: by the environment and the service account's own files.
_ASK_APISERVER = """
import json, os, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
url = "https://{KUBERNETES_SERVICE_HOST}:{KUBERNETES_SERVICE_PORT}/version".format(**os.environ)
context = ssl.create_default_context(cafile=folder + "ca.crt")
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + open(folder + "token").read()})
print(json.load(urllib.request.urlopen(request, context=context, timeout=10))["gitVersion"])
"""


def pod(name: str, *command: str, container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod of one container that runs once."""
    main = {"name": "main", "image": BASE_IMAGE, "imagePullPolicy": "Never", "command": list(command)}
    containers = [{**main, **(container or {})}]
    return {
        "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": containers, **spec},
    }


def create(cluster: GivenCluster, namespace: str, body: dict[str, Any]) -> None:
    """Make a pod."""
    cluster.core.create_namespaced_pod(namespace, body)  # type: ignore[arg-type]  # the client takes JSON as well


def status_of(cluster: GivenCluster, namespace: str, name: str) -> dict[str, Any]:
    """The pod's status, as JSON."""
    status: dict[str, Any] = cluster.plain(cluster.core.read_namespaced_pod(name, namespace))["status"]
    return status


def is_deleted(cluster: GivenCluster, namespace: str, name: str) -> bool:
    """Whether somebody has deleted a pod that is still there."""
    return "deletionTimestamp" in cluster.plain(cluster.core.read_namespaced_pod(name, namespace))["metadata"]


def status_when(cluster: GivenCluster, namespace: str, name: str, phases: set[str]) -> dict[str, Any]:
    """The pod's status, as JSON, once its phase is one of `phases`."""
    seen: dict[str, Any] = {}

    def is_there() -> bool:
        seen.update(status_of(cluster, namespace, name))
        return seen["phase"] in phases

    wait_until(is_there, f"pod {name} to be {phases}", 60)
    return seen


def run_pod(cluster: GivenCluster, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
    """Run a pod to its end; returns the status."""
    create(cluster, namespace, body)
    return status_when(cluster, namespace, body["metadata"]["name"], {"Succeeded", "Failed"})


def terminated(status: dict[str, Any]) -> dict[str, Any]:
    """How the only container ended."""
    ended: dict[str, Any] = status["containerStatuses"][0]["state"]["terminated"]
    return ended


def traces(cluster: Cluster) -> dict[str, list[str]]:
    """What of a cluster can be found on the machine: every kind of thing that `down` must remove."""
    layout = cluster._running_layout
    marks = [str(cluster.directory), f"{layout.name}n", layout.name + "/", layout.service_address]

    def marked(text: str) -> list[str]:
        return [line for line in text.splitlines() if any(mark in line for mark in marks)]

    return {
        "processes": marked(run("ps", "-e", "-o", "args=")),
        "mounts": marked(Path("/proc/self/mountinfo").read_text()),
        "interfaces": marked(run("ip", "-oneline", "address") + run("ip", "-oneline", "link")),
        "cgroups": [str(root / layout.name) for root, _ in machine._hierarchies() if (root / layout.name).exists()],
        "folder": [str(cluster.directory)] if cluster.directory.exists() else [],
    }


def test_a_pod_runs_and_its_exit_is_told(any_cluster: GivenCluster, namespace: str) -> None:
    """Exit code and termination message of a container arrive in the pod's status; its output in the API's log."""
    body = pod("exits", "sh", "-c", "echo hello; printf bye > /dev/termination-log; exit 3")
    with timed("pod made, run and seen to end"):
        status = run_pod(any_cluster, namespace, body)

    assert status["phase"] == "Failed"
    assert (terminated(status)["exitCode"], terminated(status)["message"]) == (3, "bye")
    assert any_cluster.core.read_namespaced_pod_log("exits", namespace) == "hello\n"


def test_a_container_above_its_memory_limit_is_killed(any_cluster: GivenCluster, namespace: str) -> None:
    """The kernel's kill shows as `OOMKilled` with exit code 137."""
    limits = {"resources": {"limits": {"memory": "64Mi"}}}
    status = run_pod(any_cluster, namespace, pod("greedy", "python3", "-c", "bytearray(300 << 20)", container=limits))

    assert (terminated(status)["reason"], terminated(status)["exitCode"]) == ("OOMKilled", 137)


@pytest.mark.parametrize("host_network", [False, True], ids=["own network", "host network"])
def test_pods_reach_the_apiserver_and_the_machine(own_cluster: Cluster, namespace: str, *, host_network: bool) -> None:
    """In-cluster clients work unchanged, and a server of the test answers at the address that pods can reach."""
    api = run_pod(own_cluster, namespace, pod("api", "python3", "-c", _ASK_APISERVER, hostNetwork=host_network))
    with listening(own_cluster.host_address) as port:
        to_machine = [own_cluster.host_address, str(port)]
        connect = run_pod(
            own_cluster, namespace, pod("to-machine", "python3", "-c", _CONNECT, *to_machine, hostNetwork=host_network)
        )

    assert api["phase"] == "Succeeded", own_cluster.core.read_namespaced_pod_log("api", namespace)
    assert connect["phase"] == "Succeeded", own_cluster.core.read_namespaced_pod_log("to-machine", namespace)


def test_loopback_is_shared_with_pods_on_the_host_network(own_cluster: Cluster, namespace: str) -> None:
    """A server of the test on 127.0.0.1 is at the same address in a pod with `hostNetwork`."""
    with listening("127.0.0.1") as port:
        status = run_pod(
            own_cluster, namespace, pod("local", "python3", "-c", _CONNECT, "127.0.0.1", str(port), hostNetwork=True)
        )

    assert status["phase"] == "Succeeded", own_cluster.core.read_namespaced_pod_log("local", namespace)


def test_gpus_that_are_not_there_are_counted(any_cluster: GivenCluster, namespace: str) -> None:
    """A pod waits for GPUs, starts when a node is given some, and lands on that node."""
    name = any_cluster.node_names()[0]
    gpus = {"resources": {"limits": {GPU_RESOURCE: "2"}}}
    create(any_cluster, namespace, pod("gpu", "sleep", "600", container=gpus))
    waiting = status_when(any_cluster, namespace, "gpu", {"Pending"})
    any_cluster.set_gpus(name, 2)
    status_when(any_cluster, namespace, "gpu", {"Running"})
    node_name = any_cluster.plain(any_cluster.core.read_namespaced_pod("gpu", namespace))["spec"]["nodeName"]
    any_cluster.set_gpus(name, 0)

    assert "hostIP" not in waiting
    assert node_name == name


def test_a_partitioned_node_is_lost_while_its_pods_run(own_cluster: Cluster, namespace: str) -> None:
    """Without its kubelet a node is not Ready, and comes back with it."""
    name = own_cluster.node_names()[0]
    own_cluster.pause_kubelet(name)
    wait_until(lambda: not own_cluster.is_node_ready(name), f"{name} to be lost", 60)
    own_cluster.resume_kubelet(name)
    wait_until(lambda: own_cluster.is_node_ready(name), f"{name} to be back", 60)


def test_the_apiserver_comes_back_with_all_it_knew(own_cluster: Cluster, namespace: str) -> None:
    """While it is down every call fails; after it the same client goes on, and a pod that ran still runs."""
    create(own_cluster, namespace, pod("lasting", "sleep", "600"))
    before = status_when(own_cluster, namespace, "lasting", {"Running"})
    name = own_cluster.node_names()[0]
    own_cluster.stop_apiserver()
    ready_while_down = own_cluster.is_node_ready(name)
    with timed("API server started again"):
        own_cluster.start_apiserver()
    after = status_when(own_cluster, namespace, "lasting", {"Running"})

    assert not ready_while_down
    assert after["containerStatuses"][0]["containerID"] == before["containerStatuses"][0]["containerID"]


def test_a_killed_node_is_lost_with_all_its_processes(own_cluster: Cluster, namespace: str) -> None:
    """SIGKILL of a node ends its containers at once; the API learns it by silence; its pods are deleted, yet stay."""
    name = own_cluster.add_node()
    create(own_cluster, namespace, pod("doomed", "sleep", "600", nodeName=name))
    status_when(own_cluster, namespace, "doomed", {"Running"})
    cgroup = own_cluster._nodes[name].cgroup
    alive = machine.cgroup_processes(cgroup)
    own_cluster.kill_node(name)
    killed = machine.cgroup_processes(cgroup)
    with timed("killed node seen as NotReady"):
        wait_until(lambda: not own_cluster.is_node_ready(name), f"{name} to be lost", 60)
    phase = status_of(own_cluster, namespace, "doomed")["phase"]
    with timed("its pod deleted"):
        wait_until(lambda: is_deleted(own_cluster, namespace, "doomed"), "the pod of a lost node to be deleted", 60)
    own_cluster.remove_node(name)

    assert alive
    assert not killed
    assert phase == "Running", "nobody is left to report the end of its pods"
    assert name not in own_cluster.node_names()


def test_a_given_cluster_is_changed_through_its_api_only(own_cluster: Cluster) -> None:
    """Labels and cordons work on any cluster; what needs its machines is refused by name."""
    given = GivenCluster(own_cluster.kubeconfig)
    name = given.node_names()[0]
    given.cordon(name)
    given.label(name, {"example.com/pool": "spot"})
    changed = given._node_object(name)
    given.cordon(name, cordoned=False)
    given.label(name, {"example.com/pool": None})
    restored = given._node_object(name)
    given.close()

    assert (changed["spec"]["unschedulable"], changed["metadata"]["labels"]["example.com/pool"]) == (True, "spot")
    assert "unschedulable" not in restored["spec"]
    assert "example.com/pool" not in restored["metadata"]["labels"]
    with pytest.raises(ClusterError, match=f"kill {name}: this cluster was given"):
        given.kill_node(name)


def test_nothing_is_left_of_a_cluster_beside_another(own_cluster: Cluster, tmp_path: Path) -> None:
    """A second cluster runs beside the first; taken down by another process it leaves nothing."""
    second = Cluster(tmp_path / "second", nodes=1)
    with timed("up with one node beside another cluster"):
        second.up()
    second.load_image(base_archive())
    create(second, "default", pod("left", "sleep", "600"))
    status_when(second, "default", "left", {"Running"})
    while_up = traces(second)
    controllers_say = (second.logs / "kube-controller-manager.log").read_text()
    second.close()
    with timed("down"):
        run(sys.executable, "-m", "tests.cluster", "down", "--directory", second.directory)
    when_down = traces(second)
    first_is_well = all(own_cluster.is_node_ready(name) for name in own_cluster.node_names())

    # The mounts are in the node's own name space: there are none to be seen at any time.
    assert {kind for kind, found in while_up.items() if found} == {"processes", "interfaces", "cgroups", "folder"}
    assert when_down == {kind: [] for kind in when_down}
    assert first_is_well
    assert "Entering master disruption mode" not in controllers_say, "nodes must be Ready before the controllers start"


@contextmanager
def listening(address: str) -> Iterator[int]:
    """A TCP server of this process; yields its port."""
    with socket.create_server((address, 0)) as server:
        yield int(server.getsockname()[1])
