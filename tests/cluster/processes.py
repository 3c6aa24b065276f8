"""Daemons: started apart from the caller, known by pid and start time, stopped by pid only."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import ClusterError

_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A process that we started. `started` tells it from a later process that was given the same number."""

    name: str
    pid: int
    started: int
    """Clock ticks after boot, field 22 of /proc/PID/stat."""
    log: Path


def start(name: str, command: Sequence[str | Path], log: Path) -> Daemon:
    """Start `command` in a session of its own, so that Ctrl-C reaches only the caller; its output is added to `log`."""
    words = [str(word) for word in command]
    pid = os.posix_spawn(
        words[0],
        words,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE, signal.SIGINT],  # Python ignores the first; a shell may ignore the second
    )
    return Daemon(name=name, pid=pid, started=start_time(pid) or 0, log=log)


def start_time(pid: int) -> int | None:
    """When process `pid` started, in ticks after boot; None when it is gone or a zombie, which is reaped if ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        # The name in parentheses may hold anything; the fields after it are plain.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def is_running(daemon: Daemon) -> bool:
    """Whether this very process still runs."""
    return start_time(daemon.pid) == daemon.started


def signal_daemon(daemon: Daemon, number: signal.Signals) -> None:
    """Send a signal, unless the process is gone."""
    if is_running(daemon):
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon.pid, number)


def kill(daemon: Daemon) -> None:
    """SIGKILL, and wait until it is gone: nothing that the harness runs has anything to save."""
    signal_daemon(daemon, signal.SIGKILL)
    wait_until(lambda: not is_running(daemon), f"{daemon.name} (pid {daemon.pid}) to end", 30)


def wait_until(is_true: Callable[[], bool], what: str, deadline_s: float, *, watched: Sequence[Daemon] = ()) -> None:
    """Poll until `is_true`.

    Raises:
        ClusterError: not within `deadline_s`, or one of `watched` ended; the message holds the end of its log.
    """
    end = time.monotonic() + deadline_s
    while not is_true():
        for daemon in watched:
            if not is_running(daemon):
                raise ClusterError(f"{daemon.name} ended while we waited for {what}:\n{log_end(daemon)}")
        if time.monotonic() > end:
            logs = "\n".join(log_end(daemon) for daemon in watched)
            raise ClusterError(f"waited {deadline_s:.0f} s in vain for {what}\n{logs}")
        time.sleep(_POLL_S)


def log_end(daemon: Daemon) -> str:
    """The last 2,000 bytes of a daemon's log, headed by its path."""
    content = daemon.log.read_bytes() if daemon.log.exists() else b""
    return f"--- {daemon.log}\n{content[-2000:].decode(errors='replace')}"
