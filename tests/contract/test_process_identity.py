"""Process identities: unique for ever, and honest about who still runs."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract import process_identity
from contract.process_identity import identity_of, is_alive, is_this_host, own_identity, parse

PROGRAM = "import sys; sys.stdin.read()"


@pytest.fixture(params=["proc", "ps"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Linux with /proc, or a system where only `ps` can be asked."""
    if request.param == "proc" and not process_identity._BOOT_ID.exists():
        pytest.skip("no /proc here")
    if request.param == "ps":
        if shutil.which("ps") is None:
            pytest.skip("no ps here")
        monkeypatch.setattr(process_identity, "_BOOT_ID", tmp_path / "absent")
    return request.param


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until its input ends."""
    with subprocess.Popen([sys.executable, "-S", "-c", PROGRAM], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.usefixtures("system")
def test_this_process_is_alive_and_survives_being_written() -> None:
    """Its text form names it again."""
    me = own_identity()

    assert parse(str(me)) == me
    assert me.pid == os.getpid()
    assert is_this_host(me)
    assert is_alive(me)


def test_a_killed_process_is_dead_before_and_after_it_is_reaped(child: subprocess.Popen[bytes]) -> None:
    """A zombie does nothing any more; a process that is gone even less."""
    identity = identity_of(child.pid)
    assert identity is not None
    was_alive = is_alive(identity)

    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    as_zombie = is_alive(identity)
    child.wait()

    assert (was_alive, as_zombie, is_alive(identity)) == (True, False, False)
    assert identity_of(child.pid) is None


@pytest.mark.usefixtures("system")
def test_an_id_that_was_given_again_is_another_process() -> None:
    """The same process id with another start time is not the process that was meant."""
    assert not is_alive(replace(own_identity(), started="1"))


@pytest.mark.usefixtures("system")
def test_nothing_is_claimed_of_other_hosts() -> None:
    """A process of another boot or host is not alive here, whatever its id."""
    other = replace(own_identity(), boot="elsewhere")

    assert not is_this_host(other)
    assert not is_alive(other)


def test_without_proc_the_host_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A colon in the name would break the text form, so it is replaced."""
    monkeypatch.setattr(process_identity, "_BOOT_ID", tmp_path / "absent")
    monkeypatch.setattr(platform, "node", lambda: "fe80::1")

    assert process_identity._boot() == "fe80--1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7c0f1e3a-uid-of-a-pod",
        "local:boot:12",
        "local:boot:12:34:56",
        "pod:boot:12:34",
        "local:b:x:1",
        "local:b:²:1",
    ],
)
def test_other_texts_name_no_local_process(text: str) -> None:
    """A pod's uid, or anything else, is None: its liveness cannot be asked here."""
    assert parse(text) is None
