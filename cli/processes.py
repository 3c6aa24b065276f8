"""Worker processes of one machine: what pods are to the controller.

Starts them, asks them to leave, kills those that do not, and turns their ends into the evidence that the failure policy
judges: exit status or signal, flight recorder, the kernel's out-of-memory counter, the tail of the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cli.oom_kills import num_oom_kills
from contract import flight, names, process_identity
from contract.manifest import Owner
from contract.process_identity import ProcessIdentity
from controller.observed import Evidence, Intent, WorkerState, WorkerView

logger = logging.getLogger(__name__)

LOG_TAIL_BYTES = 2048

ORPHAN_SLOT = -1
"""Slot of a worker that an earlier coordinator started: it takes nobody's place."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    name: str
    slot: int
    attempt: int
    identity: ProcessIdentity
    started_at: datetime | None
    oom_kills_before: int
    process: subprocess.Popen[bytes] | None
    """None = an orphan of an earlier coordinator: not our child, so its exit status cannot be read."""
    lifeline: int | None
    intent: Intent | None = None
    kill_at: datetime | None = None
    ended_at: datetime | None = None

    def has_ended(self) -> bool:
        if self.process is not None:
            return self.process.poll() is not None
        return not process_identity.is_alive(self.identity)


class ProcessTable:
    """The worker processes of one run on this machine."""

    def __init__(self, directory: Path, *, node: str, grace: timedelta) -> None:
        """`directory` holds flight recorders and logs; it outlives this process, so a successor finds them."""
        self._directory = directory
        self._node = node
        self._grace = grace
        self._workers: dict[str, _Worker] = {}
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def num_live(self) -> int:
        """Workers that have not ended."""
        return sum(not worker.has_ended() for worker in self._workers.values())

    def pids(self) -> dict[str, int]:
        """Process id of each living worker, by name."""
        return {worker.name: worker.identity.pid for worker in self._workers.values() if not worker.has_ended()}

    def start(
        self, *, name: str, slot: int, attempt: int, settings: str, environment: dict[str, str], now: datetime
    ) -> None:
        """Start a worker. It leads a session of its own, so a Ctrl-C meant for the coordinator does not reach it."""
        if any(worker.name == name and not worker.has_ended() for worker in self._workers.values()):
            return
        self.flight_path(name).unlink(missing_ok=True)
        if self.log_path(name).exists():  # of a worker of the same name, under an earlier coordinator
            self.log_path(name).replace(self.log_path(f"{name}.previous"))
        ours, theirs = os.pipe()
        with self.log_path(name).open("wb") as log:
            process = subprocess.Popen(
                # -P: no file in the user's directory, a worker.py say, may stand in for an installed package.
                [sys.executable, "-P", "-m", "worker"],
                env={
                    **os.environ,
                    **environment,
                    names.ENV_SETTINGS: settings,
                    names.ENV_POD_NAME: name,
                    names.ENV_NODE_NAME: self._node,
                    names.ENV_TERMINATION_LOG: str(self.flight_path(name)),
                    names.ENV_LIFELINE_FD: str(ours),
                },
                pass_fds=(ours,),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        os.close(ours)
        identity = process_identity.identity_of(process.pid) or ProcessIdentity(boot="", pid=process.pid, started="")
        self._workers[str(identity)] = _Worker(
            name=name,
            slot=slot,
            attempt=attempt,
            identity=identity,
            started_at=now,
            oom_kills_before=num_oom_kills(),
            process=process,
            lifeline=theirs,
        )

    def adopt(self, owners: Iterable[Owner], *, now: datetime) -> None:
        """Watch workers of an earlier coordinator that hold shards: they have noticed its end and are draining.

        Those that are dead already are shown as ended, with the flight recorder they left behind.
        """
        for owner in owners:
            identity = process_identity.parse(owner.uid)
            if identity is None or owner.uid in self._workers or not process_identity.is_this_host(identity):
                continue
            self._workers[owner.uid] = _Worker(
                name=owner.pod,
                slot=ORPHAN_SLOT,
                attempt=0,
                identity=identity,
                started_at=None,
                oom_kills_before=num_oom_kills(),
                process=None,
                lifeline=None,
                intent=Intent.COORDINATOR_STOPPED if process_identity.is_alive(identity) else None,
                kill_at=now + self._grace,
            )

    def stop(self, uid: str, intent: Intent, now: datetime) -> None:
        """Ask a worker to drain: say on its lifeline what to do with its shard, then SIGTERM; SIGKILL after the grace."""
        worker = self._workers.get(uid)
        if worker is None or worker.has_ended() or worker.kill_at is not None:
            return
        worker.intent = intent
        worker.kill_at = now + self._grace
        if worker.lifeline is not None:
            with contextlib.suppress(BrokenPipeError):  # it ends at this very moment
                is_charged = intent in {Intent.ATTEMPT_TIMEOUT, Intent.STALLED}
                os.write(worker.lifeline, names.LIFELINE_KEEP if is_charged else names.LIFELINE_RELEASE)
        _signal(worker.identity, signal.SIGTERM)

    def stop_all(self, intent: Intent, now: datetime) -> None:
        """Ask every worker to drain."""
        for uid in list(self._workers):
            self.stop(uid, intent, now)

    def kill_overdue(self, now: datetime) -> None:
        """SIGKILL what has outlived its grace period."""
        for worker in self._workers.values():
            if worker.kill_at is not None and now >= worker.kill_at and not worker.has_ended():
                logger.warning("killed after its grace period", extra={"pod": worker.name})
                _signal(worker.identity, signal.SIGKILL)

    def kill_all(self) -> None:
        """SIGKILL every worker."""
        for worker in self._workers.values():
            if not worker.has_ended():
                _signal(worker.identity, signal.SIGKILL)

    def forget(self, uid: str) -> None:
        """Drop an ended worker."""
        worker = self._workers.pop(uid, None)
        if worker is not None and worker.lifeline is not None:
            os.close(worker.lifeline)

    def views(self, now: datetime) -> tuple[WorkerView, ...]:
        """All workers, ended ones with the evidence of their end."""
        return tuple(self._view(uid, worker, now) for uid, worker in self._workers.items())

    def flight_path(self, name: str) -> Path:
        """Flight recorder of a worker."""
        return self._directory / f"{name}.flight"

    def log_path(self, name: str) -> Path:
        """Log of a worker."""
        return self._directory / f"{name}.log"

    def log_tail(self, uid: str) -> bytes:
        """The end of a worker's log; empty when it is unknown."""
        worker = self._workers.get(uid)
        return b"" if worker is None else _tail(self.log_path(worker.name), names.MAX_LOG_BYTES)

    def _view(self, uid: str, worker: _Worker, now: datetime) -> WorkerView:
        ended = worker.has_ended()
        if ended:
            worker.ended_at = worker.ended_at or now
            state = WorkerState.ENDED
        elif worker.kill_at is not None:
            state = WorkerState.DRAINING
        else:
            state = WorkerState.RUNNING
        return WorkerView(
            name=worker.name,
            uid=uid,
            slot=worker.slot,
            attempt=worker.attempt,
            node=self._node,
            state=state,
            started_at=worker.started_at,
            evidence=self._evidence(worker) if ended else None,
        )

    def _evidence(self, worker: _Worker) -> Evidence:
        code = worker.process.returncode if worker.process is not None else None
        ran_s = (worker.ended_at - worker.started_at).total_seconds() if worker.ended_at and worker.started_at else None
        return Evidence(
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            messages=(_tail(self.log_path(worker.name), LOG_TAIL_BYTES).decode(errors="replace"),),
            intent=worker.intent,
            is_vanished=worker.process is None,
            is_oom_killed=code == -signal.SIGKILL and num_oom_kills() > worker.oom_kills_before,
            flight=_read_flight(self.flight_path(worker.name)),
            ran_s=ran_s,
        )


def _signal(identity: ProcessIdentity, number: signal.Signals) -> None:
    """Send a signal to this very process; one that has gone, or whose id belongs to another by now, gets none."""
    if process_identity.is_alive(identity):
        with contextlib.suppress(ProcessLookupError):  # an orphan is not our child, so it may be gone by now
            os.kill(identity.pid, number)


def _read_flight(path: Path) -> flight.Flight | None:
    try:
        return flight.from_text(path.read_text())
    except FileNotFoundError:
        return None


def _tail(path: Path, num_bytes: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - num_bytes))
            return log.read()
    except FileNotFoundError:
        return b""
