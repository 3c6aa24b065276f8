"""One node: containerd and a kubelet in name spaces of their own.

The node has its own process and mount name spaces, and shares the machine's network. So

* SIGKILL of its first process ends every process of the node at once, as a power failure does;
* its mounts (overlay, secrets, network name spaces) vanish with the last of them: nothing is left to unmount;
* kubelet, containerd and the network plugins use their default folders, some of which cannot be moved (device plug-ins,
  pod logs, the shims' sockets), and each node sees its own.

Unlike a real node it shares the kernel's memory: only the limits of pods hold, not a size of the node.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import machine
from tests.cluster.binaries import Binaries
from tests.cluster.errors import ClusterError
from tests.cluster.layout import LOOPBACK, NodeLayout
from tests.cluster.processes import Daemon, kill, start, wait_until
from tests.cluster.programs import run

# Holds the name spaces of a pod. Every node has it.
PAUSE_IMAGE = "inferencerun.test/pause:1"

# Folders that a node has for itself: where they lie in its own folder -> where the programs look for them. On the machine
# these are empty folders to mount over. They are never removed: that would also unmount them in every other node.
_PRIVATE_FOLDERS = {
    "var-lib-kubelet": "/var/lib/kubelet",
    "var-lib-containerd": "/var/lib/containerd",
    "run-containerd": "/run/containerd",
    "var-lib-cni": "/var/lib/cni",
    "run-netns": "/run/netns",
    "var-log-pods": "/var/log/pods",
    "var-log-containers": "/var/log/containers",
}
_CNI_PROGRAMS = "/usr/lib/cni"

# Process 1 of the node. It takes the private folders as arguments, SOURCE TARGET each, up to `--`; then the settings.
# `wait` also collects the orphans that the shims leave.
_INIT = """
set -eu
mount --make-rshared /
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
config=$2 containerd_log=$3 kubelet_log=$4; shift 4
/usr/bin/containerd --config "$config" >>"$containerd_log" 2>&1 &
tries=0
until [ -S /run/containerd/containerd.sock ]; do
    tries=$((tries + 1)); [ $tries -lt 600 ]; sleep 0.1
done
"$@" >>"$kubelet_log" 2>&1 &
wait
"""


def start_node(node: NodeLayout, binaries: Binaries) -> Daemon:
    """Start the node; it has registered some seconds later. The daemon is the parent of the node's first process.

    Raises:
        ClusterError: containerd did not start; the message holds the end of its log.
    """
    node.directory.mkdir(parents=True)
    for source, target in _PRIVATE_FOLDERS.items():
        (node.directory / source).mkdir()
        Path(target).mkdir(parents=True, exist_ok=True)
    containerd_config = node.directory / "containerd.toml"
    containerd_config.write_text(_containerd_config(node), encoding="utf-8")
    (node.directory / "cni").mkdir()
    (node.directory / "cni" / "10-bridge.conflist").write_text(json.dumps(_network(node)), encoding="utf-8")
    node.kubelet_config.write_text(json.dumps(_kubelet_config(node, binaries), indent=1), encoding="utf-8")
    machine.add_cgroup(node.cgroup)
    machine.add_bridge(node)
    folders = [word for source, target in _PRIVATE_FOLDERS.items() for word in (str(node.directory / source), target)]
    command: list[str | Path] = [
        "/usr/bin/unshare",
        *("--pid", "--mount", "--mount-proc", "--propagation=private", "--kill-child=KILL"),
        *("/bin/sh", "-c", _INIT, node.name, *folders, "--"),
        *(containerd_config, node.containerd_log, node.kubelet_log),
        *_kubelet_command(node, binaries),
    ]
    return start(node.name, command, node.cluster.logs / f"{node.name}.log")


def wait_for_containerd(node: NodeLayout, daemon: Daemon) -> None:
    """Wait until containerd takes images."""
    wait_until(node.containerd_socket.exists, f"containerd of {node.name}", 60, watched=[daemon])


def import_image(node: NodeLayout, archive: Path) -> None:
    """Give the node the images of a docker archive."""
    # The address is relative because that of a Unix socket holds 107 bytes at most, which the path may exceed.
    socket = node.containerd_socket.relative_to(node.directory)
    command = ("/usr/bin/ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", archive.absolute())
    run(*command, directory=node.directory)


def kill_node(node: NodeLayout, daemon: Daemon) -> None:
    """End every process of the node at once, containers included."""
    kill(daemon)
    wait_until(lambda: not machine.cgroup_processes(node.cgroup), f"the processes of {node.name} to end", 30)


def pod_output(node: NodeLayout, uid: str) -> str:
    """Output of a pod's containers, one after the other, without the stamps of the log files."""
    found = []
    for log in sorted(node.directory.glob(f"var-log-pods/*_{uid}/*/*.log")):
        # The format of the runtime interface: time, stream, F or P (a line that goes on), text.
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            _, _, tag, text = line.split(" ", 3)
            found.append(text if tag == "P" else f"{text}\n")
    return "".join(found)


def kill_pod(node: NodeLayout, uid: str) -> None:
    """SIGKILL every process of a pod but the one that holds its name spaces."""
    for pid in machine.cgroup_processes(node.cgroup, within=f"pod{uid}"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] != b"/pause":
                os.kill(pid, signal.SIGKILL)


def clean_up(node: NodeLayout) -> None:
    """Remove what a dead node left on the machine outside its folder."""
    machine.delete_bridge(node)
    machine.remove_cgroup(node.cgroup)


def signal_kubelet(node: NodeLayout, number: signal.Signals) -> None:
    """Send a signal to the kubelet alone: stopped, its node is lost to the cluster while its pods run on.

    Raises:
        ClusterError: it does not run.
    """
    found = [pid for pid, words in _processes() if _is_kubelet(node, words)]
    if not found:
        raise ClusterError(f"the kubelet of {node.name} does not run; its log is {node.kubelet_log}")
    for pid in found:
        os.kill(pid, number)


def _is_kubelet(node: NodeLayout, words: list[str]) -> bool:
    return Path(words[0]).name == "kubelet" and f"--config={node.kubelet_config}" in words


def _processes() -> Iterator[tuple[int, list[str]]]:
    """(pid, command line) of everything that runs on this machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield int(entry.name), words


def _containerd_config(node: NodeLayout) -> str:
    # restrict_oom_score_adj: where CAP_SYS_RESOURCE is missing, as in many containers, runc cannot lower the score of a
    # sandbox, and without this every sandbox fails with "can't get final child's PID from pipe: EOF".
    return f"""
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "/run/containerd/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "{node.directory}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
stream_server_address = "{LOOPBACK}"
stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{_CNI_PROGRAMS}"
conf_dir = "{node.directory}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _network(node: NodeLayout) -> dict[str, object]:
    # The bridge and its address are ours, not the plug-in's (`isGateway`): it would turn on forwarding on the machine.
    # Pods reach the machine's own addresses, which is all they need.
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": node.pod_range, "gateway": node.address}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": node.bridge, "isGateway": False, "ipMasq": False, "ipam": addresses}
    return {"cniVersion": "0.4.0", "name": node.bridge, "plugins": [bridge]}


def _kubelet_config(node: NodeLayout, binaries: Binaries) -> dict[str, object]:
    config: dict[str, object] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "port": node.kubelet_port,
        "readOnlyPort": 0,
        "healthzBindAddress": LOOPBACK,
        "healthzPort": node.healthz_port,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(node.cluster.certificates / "kubelet-client.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},  # for the one client that can show this certificate
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.cgroup,
        "failSwapOn": False,
        # The disk is the machine's, and others fill it: only a disk that is really full may evict.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,  # an image that was removed could not be pulled again
        "makeIPTablesUtilChains": False,  # there are no Services to forward; the machine's rules stay as they are
        # Renewed every 2 s, so that 10 s without news mean a lost node.
        "nodeLeaseDurationSeconds": 8,
        "nodeStatusUpdateFrequency": "4s",
    }
    if binaries.minor >= 27:
        config["containerRuntimeEndpoint"] = _CRI_ENDPOINT
    if binaries.minor >= 31 and machine.has_cgroup_v1():
        config["failCgroupV1"] = False
    return config


_CRI_ENDPOINT = "unix:///run/containerd/containerd.sock"


def _kubelet_command(node: NodeLayout, binaries: Binaries) -> list[str]:
    command = [
        str(binaries.program("kubelet")),
        f"--config={node.kubelet_config}",
        f"--kubeconfig={node.cluster.kubeconfig}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]
    if binaries.minor < 27:  # 1.27 moved these into the configuration
        command += ["--container-runtime=remote", f"--container-runtime-endpoint={_CRI_ENDPOINT}"]
    return command
