"""Reading the kernel's count of kills, and what the parent of a model process makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.build import model
from worker import model_client
from worker.memory_limit import num_memory_kills
from worker.model_client import Died, ModelProcess


@pytest.mark.parametrize(
    "text",
    [
        "low 0\nhigh 0\nmax 12\noom 4\noom_kill 3\noom_group_kill 0\n",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    ],
    ids=["version 2", "version 1"],
)
def test_the_count_is_read_from_either_version(tmp_path: Path, text: str) -> None:
    """The first file that is there decides; its other fields do not confuse it."""
    counter = tmp_path / "counter"
    counter.write_text(text)

    assert num_memory_kills((tmp_path / "missing", counter)) == 3


def test_a_machine_that_keeps_no_count_has_seen_none(tmp_path: Path) -> None:
    """No file, or one without the field (kernels before 4.13): every kill is then one from outside."""
    old = tmp_path / "counter"
    old.write_text("oom_kill_disable 0\nunder_oom 0\n")

    assert num_memory_kills((tmp_path / "missing", old)) == 0


@pytest.mark.parametrize(("counts", "is_memory"), [([4, 5], True), ([5, 5], False)])
def test_a_kill_that_the_kernel_counts_is_put_down_to_memory(
    start_process: Callable[..., ModelProcess],
    monkeypatch: pytest.MonkeyPatch,
    counts: list[int],
    *,
    is_memory: bool,
) -> None:
    """Counted between start and end of the process: memory. Else somebody else has sent the signal."""
    answers = iter(counts)
    monkeypatch.setattr(model_client, "num_memory_kills", lambda: next(answers))
    child = start_process(model(harm="kill", on="A"))
    child.submit(["A"])

    while (outcome := child.receive(0.5)) is None:
        pass

    assert isinstance(outcome, Died)
    assert (outcome.did_exhaust_memory, outcome.was_killed) == (is_memory, not is_memory)
