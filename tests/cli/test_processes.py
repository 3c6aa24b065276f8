"""cli.processes: what happens to a worker that is stopped, started twice, or gone."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from cli import processes
from cli.processes import ProcessTable
from cli.run import work_directory
from contract.errors import SpecError
from contract.manifest import Owner
from contract.process_identity import ProcessIdentity, own_identity
from controller.observed import Intent, WorkerState
from tests import make
from tests.cli.local_run import wait_until


@pytest.fixture
def table(tmp_path: Path) -> ProcessTable:
    """No workers yet."""
    return ProcessTable(tmp_path / "work", node="here", grace=timedelta(seconds=30))


def program(path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `body`, a shell script, what is started in the place of a worker."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def start(table: ProcessTable, name: str = "w-0-0") -> None:
    """Start a worker in slot 0."""
    table.start(name=name, slot=0, attempt=0, settings="{}", environment={}, now=make.NOW)


def test_a_worker_that_ends_at_the_moment_it_is_stopped_breaks_nothing(
    table: ProcessTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lifeline has no reader any more, though it was still seen alive a moment ago."""
    program(tmp_path / "ends", "exit 0", monkeypatch)
    start(table)
    wait_until(lambda: table.num_live == 0)
    monkeypatch.setattr(processes._Worker, "has_ended", lambda _: False)

    table.stop_all(Intent.SCALE_DOWN, make.NOW)

    assert [item.state for item in table.views(make.NOW)] == [WorkerState.DRAINING]


def test_a_worker_that_does_not_drain_is_killed_after_its_grace_and_not_before(
    table: ProcessTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM at once, SIGKILL when the grace is over; the intent is handed back as evidence."""
    program(tmp_path / "stays", "trap '' TERM\necho ready\nexec sleep 60", monkeypatch)
    start(table)
    wait_until(lambda: table.log_path("w-0-0").read_text() == "ready\n")
    table.stop_all(Intent.SUSPENDED, make.NOW)

    table.kill_overdue(make.later(29))
    was_alive = table.num_live
    table.kill_overdue(make.later(30))
    wait_until(lambda: table.num_live == 0)
    evidence = table.views(make.later(31))[0].evidence

    assert was_alive == 1
    assert evidence is not None
    assert (evidence.signal, evidence.intent, evidence.messages) == (signal.SIGKILL, Intent.SUSPENDED, ("ready\n",))


def test_a_start_that_is_repeated_starts_nobody_twice(
    table: ProcessTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name belongs to one living worker."""
    program(tmp_path / "stays", "exec sleep 60", monkeypatch)

    start(table)
    start(table)
    num_live = table.num_live
    table.kill_all()

    assert num_live == 1


def test_a_log_is_not_overwritten_by_a_successor_of_its_name(
    table: ProcessTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is set aside, and the successor's evidence is its own."""
    program(tmp_path / "says", f"cat {tmp_path}/text", monkeypatch)
    for text in ("first", "second"):
        (tmp_path / "text").write_text(text)
        start(table)
        wait_until(lambda: table.num_live == 0)
    tails = [table.log_tail(uid) for uid in table._workers]

    assert table.log_path("w-0-0.previous").read_text() == "first"
    assert tails[-1] == b"second"


def test_only_owners_of_this_host_are_adopted(table: ProcessTable) -> None:
    """Pods, and processes of another boot, are nothing that could be seen or stopped from here."""
    here = own_identity()
    dead = ProcessIdentity(boot=here.boot, pid=here.pid, started="0")
    elsewhere = ProcessIdentity(boot="another", pid=here.pid, started=here.started)
    uids = (str(dead), str(elsewhere), "0b5c1e0a-pod-uid")

    table.adopt([Owner(pod="w", uid=uid, node="n") for uid in uids], now=make.NOW)
    views = table.views(make.NOW)

    assert [(item.uid, item.state) for item in views] == [(str(dead), WorkerState.ENDED)]
    assert views[0].evidence is not None
    assert views[0].evidence.is_vanished


def test_a_work_directory_that_is_a_link_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is predictable, so whoever made it first could read logs and forge flight recorders."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"inferencerun-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with pytest.raises(SpecError, match="set TMPDIR"):
        work_directory("file:///out", 1)
