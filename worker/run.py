"""One worker's life: claim a shard, resume, read, infer, commit, release; until no work is left or it must leave.

The parent process runs this: store, manifest, reading ahead, checkpoints, signals. The model process runs the model and
nothing else. What may end a shard early, and what becomes of its finished rows:

    drain (SIGTERM)         finished rows are committed, the shard is released (timeouts: stays ours); exit 143
    bad input object        sound records before the damage are committed, the shard is marked failed, the next is claimed
    model cannot be loaded  finished rows are committed, the shard is given back: the run is to blame, not what we held
    model, device, memory   finished rows are committed, the shard stays ours: whoever finds us dead judges and releases it
    input store             finished rows are committed, as above
    output store, fencing   nothing can be committed; rows since the last commit are lost, and run again elsewhere
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from io import BytesIO

from contract import layout, plan
from contract.errors import InvalidInput, ModelError
from contract.manifest import Failure, Owner, ShardManifest
from contract.names import ExitCode, FailureClass
from contract.plan import Plan
from contract.settings import WorkerSettings
from contract.store.commit import Committer
from worker.batching import Item
from worker.checkpoint import CheckpointWriter
from worker.claims import Claims, NothingToClaim, give_back
from worker.feed import Feed
from worker.flight_recorder import FlightRecorder
from worker.held_shard import HeldShard
from worker.metrics import ShardEnd, WorkerMetrics
from worker.model_client import ModelProcess
from worker.models.protocol import Preparer
from worker.records.record import Record
from worker.session import POLL_S, ShardSession
from worker.shards import Resume, resume_point

logger = logging.getLogger(__name__)

MAX_CLAIM_WAIT_S = 30.0
"""A shard that becomes claimable within this is waited for: cheaper than ending and starting again."""

ReadRecords = Callable[[Plan, ShardManifest, Resume], Iterator[Record]]
"""Records of a shard's range, from its resume point on."""


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker of a run: its settings, its seams, and the flag that asks it to leave."""

    settings: WorkerSettings
    committer: Committer
    owner: Owner
    preparer: Preparer
    model: ModelProcess
    recorder: FlightRecorder
    read_records: ReadRecords
    now: Callable[[], datetime]
    new_id: Callable[[], str]
    versions: dict[str, str]
    metrics: WorkerMetrics
    drain: threading.Event
    """Set by the signal handler: take no more batches, commit, release, leave."""
    drain_class: Callable[[], FailureClass] = lambda: FailureClass.SPOT_EVICTION
    """What a drain is accounted as: an eviction, unless whoever asked said otherwise."""
    keeps_shard: Callable[[], bool] = lambda: False
    """Whether whoever asked for the drain charges the shard with it, and so releases it himself."""
    clock: Callable[[], float] = time.monotonic
    _buffer: BytesIO = field(default_factory=BytesIO)
    _recorder_lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> ExitCode:
        """Work until nothing is left; returns the exit code. Raises what ends the worker, see the module."""
        self.metrics.watch(self.model)
        shards = self._read_plan()
        claims = Claims(
            self.committer,
            shards,
            self.owner,
            worker_index=self.settings.worker_index,
            num_workers=self.settings.num_workers,
            memory_bytes=self.settings.memory_bytes,
            now=self.now,
            new_id=self.new_id,
        )
        while not self.drain.is_set():
            claimed = claims.claim_next()
            if isinstance(claimed, NothingToClaim):
                if not self._should_wait(claimed):
                    return ExitCode.NO_WORK_LEFT
                continue
            self.metrics.claimed()
            self._note(shard=claimed.current.shard, epoch=claimed.current.epoch, has_claimed=True)
            self._work_on(shards, claimed)
            self._note(shard=None, epoch=None, first=None, next=None, first_offset=None, first_id="")
        return ExitCode.DRAINED

    def _read_plan(self) -> Plan:
        key = layout.build_plan_key(self.settings.generation)
        return plan.from_json(self.committer.read(key).body, where=key)

    def _should_wait(self, nothing: NothingToClaim) -> bool:
        if nothing.next_at is None:
            return False
        wait_s = (nothing.next_at - self.now()).total_seconds()
        if wait_s > MAX_CLAIM_WAIT_S:
            return False
        until = self.clock() + max(wait_s, POLL_S)
        while self.clock() < until and not self.drain.is_set():
            time.sleep(POLL_S)  # not drain.wait: the signal handler that sets it would wait for the lock held in there
        return True

    def _work_on(self, shards: Plan, held: HeldShard) -> None:
        """Bring one shard as far as it goes, then commit and release."""
        session = self._open_session(shards, held)
        try:
            session.run()
            session.finish()
        except InvalidInput as error:
            session.finish()
            give_back(
                held,
                failure_class=FailureClass.CONFIGURATION,
                evidence=str(error),
                now=self.now(),
                failure=Failure(failure_class=FailureClass.CONFIGURATION, detail=str(error)),
            )
            self.metrics.shard_ended(ShardEnd.FAILED)
            logger.error("shard failed", extra={"shard": held.current.shard, "detail": str(error)})  # noqa: TRY400
            return
        except Exception as error:
            # The judgement of this error is left to whoever finds this worker ended. Its finished rows are sound.
            end = ShardEnd.LEFT
            try:
                if session.writer.has_failed:
                    session.writer.abandon()
                else:
                    session.finish()
                    if isinstance(error, ModelError) and not self.model.is_loaded:
                        self._give_back_blameless(held, error)
                        end = ShardEnd.RELEASED
            finally:
                self.metrics.shard_ended(end)
            raise
        if held.current.is_final:
            self.metrics.shard_ended(ShardEnd.COMPLETE)
            logger.info("shard complete", extra={"shard": held.current.shard, "num_records": held.current.records})
        elif self.drain.is_set() and not self.keeps_shard():
            give_back(held, failure_class=self.drain_class(), evidence="drained on SIGTERM", now=self.now())
            self.metrics.shard_ended(ShardEnd.RELEASED)
        else:
            self.metrics.shard_ended(ShardEnd.LEFT)

    def _give_back_blameless(self, held: HeldShard, error: Exception) -> None:
        """Give a shard back that waited for a model which can never be loaded.

        Left in our hands it would be charged with our end and failed, and so would each next shard in its turn, before
        the run were found to be at fault. A worker that holds nothing tells of the run.
        """
        give_back(held, failure_class=FailureClass.CONFIGURATION, evidence=str(error), now=self.now(), is_counted=True)
        self._note(shard=None, epoch=None, first=None, next=None, first_offset=None, first_id="")

    def _open_session(self, shards: Plan, held: HeldShard) -> ShardSession:
        current = held.current
        resume = resume_point(current)
        writer = CheckpointWriter(
            held,
            self.settings,
            now=self.now,
            versions=self.versions,
            buffer=self._buffer,
            on_committed=lambda: self._note(has_committed=True),
            metrics=self.metrics,
        )
        feed = Feed(
            self.read_records(shards, current, resume),
            manifest=current,
            preparer=self.preparer,
            token_budget=current.hints.token_budget or self.settings.model.max_tokens_per_batch,
            first_ordinal=resume.first_ordinal,
        )
        return ShardSession(
            settings=self.settings,
            held=held,
            feed=feed,
            model=self.model,
            writer=writer,
            is_draining=self.drain.is_set,
            note_in_flight=self.note_in_flight,
            metrics=self.metrics,
            clock=self.clock,
        )

    def note_in_flight(self, first: Item | None, next_ordinal: int | None) -> None:
        """Tell the flight recorder which records the model process holds."""
        self._note(
            first=first.ordinal if first else None,
            next=next_ordinal,
            first_offset=first.offset if first else None,
            first_id=first.id if first else "",
            model_restarts=self.model.num_restarts,
        )

    def _note(self, **changes: object) -> None:
        with self._recorder_lock:
            self.recorder.record(replace(self.recorder.flight, **changes))  # type: ignore[arg-type]
