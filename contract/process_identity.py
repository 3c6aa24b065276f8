"""Who a local process is, for ever: host boot, process id and start time in one text, so that liveness can be asked later.

A process id alone is reused; with the start time and the boot it is unique. A worker without a pod uid uses this as
`owner.uid`, so a coordinator that starts after another was killed can tell from the manifests alone which owners live.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process on one host."""

    boot: str
    """Id of the host's boot and of the pid namespace (Linux: containers on one kernel share the former only), or the
    host's name."""
    pid: int
    started: str
    """Start time in the system's own unit; only compared."""

    def __str__(self) -> str:
        """Text form, as in `owner.uid`."""
        return f"local:{self.boot}:{self.pid}:{self.started}"


def parse(text: str) -> ProcessIdentity | None:
    """The identity in `text`; None when it names no local process."""
    parts = text.split(":")
    if len(parts) != 4 or parts[0] != "local" or not parts[2].isdecimal():
        return None
    return ProcessIdentity(boot=parts[1], pid=int(parts[2]), started=parts[3])


def identity_of(pid: int) -> ProcessIdentity | None:
    """The process that has this id now; None when there is none (a zombie counts as none: it does nothing any more)."""
    started = _start_time(pid)
    return None if started is None else ProcessIdentity(boot=_boot(), pid=pid, started=started)


def own_identity() -> ProcessIdentity:
    """This process."""
    identity = identity_of(os.getpid())
    assert identity is not None, "a running process must find itself"
    return identity


def is_this_host(identity: ProcessIdentity) -> bool:
    """Whether the process runs, or ran, on this boot of this host."""
    return identity.boot == _boot()


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether it still runs on this host. False for a process of another host or boot: nothing can be seen of it."""
    return is_this_host(identity) and identity_of(identity.pid) == identity


def _boot() -> str:
    try:
        namespace = "".join(filter(str.isdigit, str(_PID_NAMESPACE.readlink())))
        return f"{_BOOT_ID.read_text().strip().replace('-', '')}-{namespace}"
    except OSError:
        return platform.node().replace(":", "-")


def _start_time(pid: int) -> str | None:
    """Linux: clock ticks since boot (proc(5), field 22); elsewhere what `ps` prints."""
    if _BOOT_ID.exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in {"Z", "X"} else fields[19]
    listed = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listed.stdout.strip().replace(":", ".").replace(" ", "_") or None
