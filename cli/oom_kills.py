"""How many processes the kernel has killed for memory, as close to our own as it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def num_oom_kills(root: Path = Path("/")) -> int:
    """Processes of this process's cgroup killed for memory, by the cgroup's limit or the host's lack; 0 where not told.

    Workers share the cgroup of the coordinator. Without cgroups it is the count of the whole host, which another
    container's trouble raises too. Sources: Linux, Documentation/admin-guide/cgroup-v2 (memory.events), cgroup-v1/memory
    (memory.oom_control), /proc/vmstat; `oom_kill` is in each since 4.13.
    """
    for counters in _counters(root):
        try:
            lines = counters.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _counters(root: Path) -> Iterator[Path]:
    """Files that may tell, the closest first."""
    try:
        memberships = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        memberships = []
    for _, controllers, path in memberships:
        if not controllers:
            yield root / "sys/fs/cgroup" / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield root / "sys/fs/cgroup/memory" / path.lstrip("/") / "memory.oom_control"
    yield root / "proc/vmstat"
