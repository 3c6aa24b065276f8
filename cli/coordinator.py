"""The local coordinator: the controller's planner over worker processes of this machine.

One turn: read the manifests, look at the processes, decide (`controller.planner`), save what must be remembered, apply.
A killed coordinator loses nothing: its workers notice, drain and end; the next one on the same output waits for those
that still do, releases the shards of the dead, and goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from cli.coordinator_lock import CoordinatorLock
from cli.interrupts import Interrupts
from cli.processes import ProcessTable
from contract import settings
from contract.errors import Corrupt
from contract.manifest import ShardManifest
from contract.names import ExitCode, Phase
from controller import api, memory
from controller.actions import Action, Finalize, ForgetWorker, KeepLog, ReleaseShard, StartWorker, StopWorker
from controller.api import InferenceRun
from controller.memory import RunMemory
from controller.observed import Intent, Observed, WorkerView
from controller.planner import plan
from controller.run_store import OpenedRun, RunStore
from controller.status import RunStatus

logger = logging.getLogger(__name__)

TURN_S = 1.0
"""Longest time between two looks at the store; the end of a worker is seen at once."""

ENDED = frozenset({Phase.SUCCEEDED, Phase.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One look at the run, for whoever shows it."""

    at: datetime
    status: RunStatus
    workers: tuple[WorkerView, ...]
    manifests: dict[int, ShardManifest]


class Display(Protocol):
    """Shows a run while it goes on."""

    def show(self, turn: Turn) -> None:
        """One turn has been taken."""
        ...

    def note(self, text: str) -> None:
        """Something happened that is worth a line."""
        ...


@dataclass(slots=True, kw_only=True)
class Coordinator:
    """Runs one opened run to its end on this machine."""

    run: InferenceRun
    opened: OpenedRun
    store: RunStore
    lock: CoordinatorLock
    processes: ProcessTable
    memory: RunMemory
    display: Display
    now: Callable[[], datetime]
    environment: Callable[[int], dict[str, str]]
    """Environment of the worker in a slot: which device it sees, how many threads it may use."""
    grace: timedelta
    interrupts: Interrupts
    _is_refused: bool = field(default=False, init=False)
    """A worker has said that the spec or the model cannot work, and nothing has been committed since."""

    def work(self) -> Turn:
        """Turn until the run has ended, everything has drained after an interrupt, or nothing is left to try.

        The last: a worker refused the spec or the model. On a cluster somebody can change the resource while the
        breaker waits for its next probe; here they are read from files that whoever started this has to mend first.

        Returns the last turn, in phase CircuitOpen in that last case.

        Raises:
            Fenced: another coordinator has taken over.
            StoreError: the store does not answer, or refuses.
        In each case, and whatever else happens, the workers have been drained before.
        """
        try:
            self._adopt_orphans()
            while True:
                turn, requeue_s = self._turn(may_start=not self.interrupts.count)
                self._is_refused = turn.status.phase is Phase.CIRCUIT_OPEN and (self._is_refused or has_refused(turn))
                if (turn.status.phase in ENDED or self._is_refused) and self.processes.num_live == 0:
                    return turn
                if self.interrupts.count:
                    return self._drain()
                self.interrupts.wait(min(requeue_s, TURN_S))
        except Exception:
            self._wait_for_workers()
            raise

    def _turn(self, *, may_start: bool) -> tuple[Turn, float]:
        now = self.now()
        generation = self.opened.record.generation
        # Manifests before processes: a worker that starts in between holds nothing that was read.
        manifests = self.store.read_manifests(generation)
        self.processes.kill_overdue(now)
        workers = self.processes.views(now)
        observed = Observed(
            manifests=manifests,
            workers=workers,
            is_complete=True,
            is_finalized=self.store.is_finalized(generation),
        )
        decision = plan(run=self.run, plan=self.opened.plan, observed=observed, memory=self.memory, now=now)
        self._save(decision.memory, now)
        for action in decision.actions:
            if isinstance(action, StartWorker) and not may_start:
                continue
            if not self._apply(action, manifests, now):
                break
        turn = Turn(at=now, status=decision.status, workers=workers, manifests=manifests)
        self.display.show(turn)
        return turn, TURN_S if decision.requeue_after_s is None else decision.requeue_after_s

    def _apply(self, action: Action, manifests: dict[int, ShardManifest], now: datetime) -> bool:
        """Apply one action; False when the rest must wait for a new look."""
        generation = self.opened.record.generation
        match action:
            case StartWorker():
                self._start(action, now)
            case StopWorker():
                self.processes.stop(action.uid, action.intent, now)
            case ReleaseShard():
                attempt = action.attempt
                self.display.note(
                    f"worker {attempt.pod} ended: {attempt.failure_class}, {attempt.evidence}; shard {action.shard} released"
                )
                return self.store.release(action, generation)
            case KeepLog():
                content = self.processes.log_tail(action.uid)
                if content:
                    self.store.keep_log(generation, pod=action.name, uid=action.uid, content=content)
            case ForgetWorker():
                self.processes.forget(action.uid)
            case Finalize():
                self.store.finalize(generation, manifests)
        return True

    def _start(self, action: StartWorker, now: datetime) -> None:
        count = max(1, self.run.spec.workers.count)
        # The name in run.json, which checkpoints carry: a run may be resumed under another name.
        options = api.worker_settings(
            replace(self.run, name=self.opened.record.name),
            generation=self.opened.record.generation,
            run_uid=self.opened.record.uid,
            worker_index=action.slot,
            num_workers=count,
            checkpoint_every_s=action.checkpoint_every_s,
            grace_seconds=self.grace.total_seconds(),
        )
        self.processes.start(
            name=action.name,
            slot=action.slot,
            attempt=action.attempt,
            settings=settings.to_json(options),
            environment=self.environment(action.slot),
            now=now,
        )

    def _save(self, remembered: RunMemory, now: datetime) -> None:
        fields = memory.to_fields(remembered)
        if self.lock.is_due(fields, now):
            self.lock.save(fields, now)
        self.memory = remembered

    def _adopt_orphans(self) -> None:
        manifests = self.store.read_manifests(self.opened.record.generation)
        owners = [found.owner for found in manifests.values() if found.owner is not None]
        self.processes.adopt(owners, now=self.now())

    def _drain(self) -> Turn:
        if self.processes.num_live:
            self.display.note("stopping: workers commit what is finished; interrupt again to kill them")
        self._wait_for_workers()
        turn, _ = self._turn(may_start=False)
        return turn

    def _wait_for_workers(self) -> None:
        self.processes.stop_all(Intent.COORDINATOR_STOPPED, self.now())
        while self.processes.num_live:
            if self.interrupts.count > 1:
                self.processes.kill_all()
            self.processes.kill_overdue(self.now())
            self.interrupts.wait(TURN_S / 4)


def has_refused(turn: Turn) -> bool:
    """Whether a worker ended because the spec or the model cannot work. Pure.

    Such a worker holds no shard; one that does may have met a single object, or records, that its model cannot take.
    """
    held = {found.owner.uid for found in turn.manifests.values() if found.owner is not None}
    return any(
        worker.evidence is not None and worker.evidence.exit_code == ExitCode.INVALID and worker.uid not in held
        for worker in turn.workers
    )


def restored_memory(fields: dict[str, object]) -> RunMemory:
    """The memory an earlier coordinator left, its breakers closed; a fresh one when there is none that can be read.

    Whoever starts the command again has had a look and perhaps mended something; and nothing hangs on the memory but
    counts: without it breakers and restart totals begin anew.
    """
    if not fields:
        return RunMemory()
    try:
        return memory.forgiven(memory.from_fields(fields))
    except Corrupt as error:
        logger.warning("the memory in coordinator.json cannot be read; counting anew", extra={"detail": str(error)})
        return RunMemory()


def with_workers(run: InferenceRun, count: int) -> InferenceRun:
    """The run with another number of workers."""
    return replace(run, spec=replace(run.spec, workers=replace(run.spec.workers, count=count)))
