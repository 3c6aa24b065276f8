"""What the cluster changes on the machine outside its own folder, each with its undoing.

Addresses, bridges, control groups, kernel settings; and free ports.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.errors import ClusterError
from tests.cluster.layout import LOOPBACK, Layout, NodeLayout
from tests.cluster.processes import wait_until
from tests.cluster.programs import run

_CLUSTER_NUMBERS = range(180, 250)
_FIRST_PORT = 12000
# The kubelet sets these and nobody sets them back.
_KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback that were free a moment ago, all different.

    They lie below the range from which the system numbers outgoing connections: a server that is down for a while must
    find its port again, however many clients connected to somewhere meanwhile.
    """
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    candidates = list(range(_FIRST_PORT, first_outgoing))
    random.shuffle(candidates)
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in candidates:
            if len(found) == count:
                break
            one = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # in use: the next one
                one.bind((LOOPBACK, port))
                found.append(port)
    if len(found) < count:
        raise ClusterError(f"{count} free ports wanted between {_FIRST_PORT} and {first_outgoing}, found {len(found)}")
    return found


def claim_number() -> int:
    """The number of a new cluster. Putting its Service address on `lo` is the claim: it succeeds for one process only.

    Raises:
        ClusterError: all are in use.
    """
    used = _second_octets_in_use()
    for number in _CLUSTER_NUMBERS:
        if number not in used:
            with contextlib.suppress(ClusterError):  # a rival was faster: the next one
                run("ip", "address", "add", f"10.{number}.0.1/32", "dev", "lo")
                return number
    raise ClusterError(f"no free network 10.K.0.0/16 for K in {_CLUSTER_NUMBERS}: `ip address` shows who has them")


def release_number(layout: Layout) -> None:
    """Undo `claim_number`."""
    if layout.number in _second_octets_in_use():
        run("ip", "address", "delete", f"{layout.service_address}/32", "dev", "lo")


def add_bridge(node: NodeLayout) -> None:
    """The node's bridge, with the node's address."""
    run("ip", "link", "add", node.bridge, "type", "bridge")
    run("ip", "address", "add", f"{node.address}/24", "dev", node.bridge)
    run("ip", "link", "set", node.bridge, "up")


def delete_bridge(node: NodeLayout) -> None:
    """Undo `add_bridge`; the pods' ends went with their network name spaces."""
    if Path("/sys/class/net", node.bridge).exists():
        run("ip", "link", "delete", node.bridge)


def add_cgroup(path: str) -> None:
    """Make `path` in every hierarchy that the kubelet uses."""
    for root, controllers in _controlling(_hierarchies()):
        parent = root
        for part in path.strip("/").split("/"):
            group = parent / part
            group.mkdir(exist_ok=True)
            if "cpuset" in controllers:  # version 1: empty at first, and then no process can enter
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (group / name).write_text((parent / name).read_text(encoding="ascii"), encoding="ascii")
            if controllers == {_UNIFIED}:
                offered = (parent / "cgroup.controllers").read_text(encoding="ascii").split()
                wanted = " ".join(f"+{name}" for name in offered)
                (parent / "cgroup.subtree_control").write_text(wanted, encoding="ascii")
            parent = group


def cgroup_processes(path: str, *, within: str = "") -> set[int]:
    """Every process in `path` or below, in any hierarchy; with `within`, only below a group of that name."""
    found: set[int] = set()
    for root, _ in _hierarchies():
        for directory, _, files in os.walk(root / path.strip("/")):
            if "cgroup.procs" in files and (not within or within in Path(directory).parts):
                with contextlib.suppress(FileNotFoundError, OSError):  # it may go while we look
                    found |= {int(word) for word in Path(directory, "cgroup.procs").read_text("ascii").split()}
    return found


def remove_cgroup(path: str) -> None:
    """Remove `path` and all below it from every hierarchy. Its processes must be gone."""
    for root, _ in _hierarchies():
        top = root / path.strip("/")
        # The kernel lets go of a group a moment after its last process.
        wait_until(functools.partial(_removed, top), f"control group {top} to be empty", 20)


def kernel_settings() -> dict[str, str]:
    """What the kubelet is about to overwrite."""
    return {name: Path("/proc/sys", name).read_text(encoding="ascii") for name in _KERNEL_SETTINGS}


def restore_kernel_settings(saved: dict[str, str]) -> None:
    """Put the values of `kernel_settings` back where they differ."""
    for name, value in saved.items():
        path = Path("/proc/sys", name)
        if path.read_text(encoding="ascii") != value:
            path.write_text(value, encoding="ascii")


def has_cgroup_v1() -> bool:
    """Whether controllers are in hierarchies of version 1, which newer kubelets refuse unless told otherwise."""
    return any(controllers != {_UNIFIED} for _, controllers in _controlling(_hierarchies()))


_UNIFIED = "unified"


def _hierarchies() -> list[tuple[Path, set[str]]]:
    """(mount point, options) of each hierarchy; the options of the unified one are just its name."""
    found: list[tuple[Path, set[str]]] = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            found.append((Path(left.split()[4]), set(options.split(",")) if kind == "cgroup" else {_UNIFIED}))
    if not found:
        raise ClusterError("no control groups are mounted on this machine: the kubelet cannot run")
    return found


def _controlling(hierarchies: list[tuple[Path, set[str]]]) -> list[tuple[Path, set[str]]]:
    """Those that hold the controllers: beside others the unified one has none, though runc makes groups in it too."""
    return [one for one in hierarchies if one[1] != {_UNIFIED}] or hierarchies


def _removed(top: Path) -> bool:
    for directory in _deepest_first(top):
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def _deepest_first(top: Path) -> Iterator[Path]:
    for directory, _, _ in os.walk(top, topdown=False):
        yield Path(directory)


def _second_octets_in_use() -> set[int]:
    interfaces = json.loads(run("ip", "-json", "-4", "address"))
    routes = json.loads(run("ip", "-json", "-4", "route"))
    addresses = [entry["local"] for interface in interfaces for entry in interface["addr_info"]]
    addresses += [route["dst"] for route in routes]
    return {int(address.split(".")[1]) for address in addresses if address.startswith("10.")}
