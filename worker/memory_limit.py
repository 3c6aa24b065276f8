"""How often the kernel has killed a process of this container for its memory limit.

It takes one process and may leave the others, so a worker whose model process was killed asks here whether memory was why.
Kubelets from 1.28 on let it take the whole container (version 2 of control groups); then nobody is left to ask.
Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, `memory.events`; cgroup-v1/memory.html, `memory.oom_control`.
"""

from __future__ import annotations

from pathlib import Path

COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Of version 2 and of version 1; in a container each shows the container's own group."""


def num_memory_kills(counters: tuple[Path, ...] = COUNTERS) -> int:
    """The kernel's count; 0 where it keeps none that we can read."""
    for path in counters:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0
