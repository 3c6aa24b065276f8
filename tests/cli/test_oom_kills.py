"""cli.oom_kills: whose kills are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.oom_kills import num_oom_kills

VMSTAT = ("proc/vmstat", "nr_free_pages 5\noom_kill 9\n")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(
            [
                ("proc/self/cgroup", "0::/user.slice/a\n"),
                ("sys/fs/cgroup/user.slice/a/memory.events", "oom 3\noom_kill 2\noom_group_kill 1\n"),
                VMSTAT,
            ],
            2,
            id="cgroup v2",
        ),
        pytest.param(
            [
                ("proc/self/cgroup", "4:cpu,memory:/jobs/a\n0::/\n"),
                ("sys/fs/cgroup/memory/jobs/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
                VMSTAT,
            ],
            1,
            id="cgroup v1",
        ),
        pytest.param([("proc/self/cgroup", "0::/\n"), VMSTAT], 9, id="the root cgroup has no counters: the host's"),
        pytest.param([VMSTAT], 9, id="no cgroups"),
        pytest.param([], 0, id="no Linux"),
    ],
)
def test_the_closest_counter_that_there_is_counts(tmp_path: Path, files: list[tuple[str, str]], expected: int) -> None:
    """A kill in another container must not make a worker that a person killed look out of memory."""
    for name, content in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    assert num_oom_kills(tmp_path) == expected
