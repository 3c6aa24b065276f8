"""One claimed shard, from its resume point to its last commit.

The main thread moves batches from the feed to the model process and rows from there to the pending checkpoint, always in
file order. Up to two batches are in the model process; when one fails, everything behind it is collected first, then the
failures are resolved in order with nothing beside them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from contract.names import CheckpointReason
from contract.ranges import intersection
from contract.settings import WorkerSettings
from worker.batching import Batch, Item, Skipped, repacked
from worker.checkpoint import CheckpointWriter, Job, PendingRows
from worker.feed import EndOfRange, Feed, Piece, ReadingFailed
from worker.held_shard import HeldShard
from worker.isolation import Finished, Isolator, Refused
from worker.isolation import Piece as Resolved
from worker.metrics import WorkerMetrics
from worker.model_client import DEPTH, Died, ModelProcess, Outcome, Rows
from worker.model_process import DidNotFit, Raised
from worker.progress import Pending, checkpoint_due

POLL_S = 0.2
"""How long the main thread waits for the model process before it looks at the drain flag and the timers."""

MAX_DRAIN_WAIT_S = 5.0
"""How long a drain waits for the batches in the model process; a pack takes well below a second on a GPU."""

_OUTCOMES: dict[type[Outcome], str] = {Rows: "rows", Raised: "raised", DidNotFit: "didNotFit", Died: "died"}
"""What each is called in metrics."""

STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _Leaving(Exception):
    """The drain has waited long enough. What has not been taken by now runs again elsewhere."""


@dataclass(kw_only=True)
class ShardSession:
    """Works on one held shard. `run`, then `finish` (which also serves after an error of the model)."""

    settings: WorkerSettings
    held: HeldShard
    feed: Feed
    model: ModelProcess
    writer: CheckpointWriter
    is_draining: Callable[[], bool]
    note_in_flight: Callable[[Item | None, int | None], None]
    """Tells the flight recorder which records the model process holds: the first, and the ordinal after the last."""
    metrics: WorkerMetrics
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._isolator = Isolator(
            self._run_alone,
            dtype=STORED_DTYPES[self.settings.model.dtype],
            max_strikes=self.settings.max_record_strikes,
            has_worked=self.model.has_worked,
            is_larger_to_be_had=self.settings.memory_bytes is not None,
        )
        assert self.model.num_in_flight == 0, "rows of another shard's batch would be taken for ours"
        self._ahead: deque[Piece] = deque()
        self._in_flight: deque[Batch] = deque()
        self._pending = PendingRows()
        self._done_before = self.held.current.done
        self._last_commit = self.clock()
        self._drain_until: float | None = None
        self._num_records: int | None = None
        self._noted: tuple[Item | None, int | None] = (None, None)
        self._committed_budget = self.held.current.hints.token_budget

    def run(self) -> None:
        """Read, infer and commit until the range ends or the worker is asked to leave.

        Raises what reading, the model or a commit failed with; finished rows stay pending for `finish`.
        """
        with self.feed, suppress(_Leaving):
            while not self.is_draining():
                self._feed_model()
                if self._in_flight:
                    outcome = self._receive()
                    if outcome is not None:
                        self._settle(outcome)
                else:
                    self._note(None, None)
                    if self._ahead and not self._take_ahead():
                        break
                self._commit_if_due()
            self._collect_sound()

    def finish(self) -> None:
        """Commit what is pending, with the number of records when the range was read to its end; wait until it is."""
        if not self._pending.is_empty or self._num_records is not None:
            self._commit(CheckpointReason.SHUTDOWN)
        self.writer.finish()

    def _feed_model(self) -> None:
        """Move batches into the model process until it is full, or until what comes next has to wait for its turn."""
        while True:
            if not self._ahead:
                piece = self.feed.get(0.0 if self._in_flight else POLL_S)
                if piece is None:
                    return
                self._ahead.append(piece)
            batch = self._ahead[0]
            if not isinstance(batch, Batch) or not self._may_enter(batch):
                return
            self._ahead.popleft()
            budget = self._isolator.fitting_tokens
            if budget is not None and batch.num_tokens > budget and len(batch.items) > 1:
                # Packed before it was known that so many tokens do not fit.
                self._ahead.extendleft(reversed(repacked(batch, budget)))
                continue
            self._in_flight.append(batch)
            self._note(self._in_flight[0].items[0], batch.next)
            self.model.submit(batch.payloads)

    def _note(self, first: Item | None, next_ordinal: int | None) -> None:
        if (first, next_ordinal) != self._noted:
            self._noted = (first, next_ordinal)
            self.note_in_flight(first, next_ordinal)

    def _may_enter(self, batch: Batch) -> bool:
        """A suspect has nothing beside it: if the worker dies, the flight recorder names it and nothing else."""
        if not self._in_flight:
            return True
        return len(self._in_flight) < DEPTH and not batch.is_suspect and not self._in_flight[-1].is_suspect

    def _take_ahead(self) -> bool:
        """Take a piece that is no batch, now that everything before it is out of the model; False at the end."""
        piece = self._ahead[0]
        if isinstance(piece, ReadingFailed):
            raise piece.error
        if isinstance(piece, EndOfRange):
            self._take_all(self._isolator.waiting())
            self._num_records = piece.num_records
            return False
        if isinstance(piece, Skipped):
            self._ahead.popleft()
            self._take_skipped((piece,))
        return True

    def _take_skipped(self, skipped: Iterable[Skipped]) -> None:
        for one in skipped:
            self._pending.add(Refused(one.item, one.quarantine_class, one.detail))

    def _settle(self, outcome: Outcome) -> None:
        """Take the rows of the oldest batch in flight; if it failed, resolve it, and all behind it, in order."""
        outcomes = [(self._in_flight.popleft(), outcome)]
        is_sound = self._isolator.is_sound(outcome)
        while self._in_flight and not is_sound:
            outcomes.append((self._in_flight[0], self._wait()))
            self._in_flight.popleft()
        for batch, result in outcomes:
            self._take_skipped(batch.skipped)
            pieces = self._isolator.resolve(batch.items, result, was_alone=batch.is_suspect)
            self._take_all(pieces, is_window_open=not is_sound)
        if self._pending.has_costly_verdict:
            self._commit(CheckpointReason.QUARANTINE)

    def _take_all(self, pieces: Iterator[Resolved], *, is_window_open: bool = False) -> None:
        for piece in pieces:
            if isinstance(piece, Finished) and self._is_behind_gap(piece.items[0]):
                self._commit(CheckpointReason.GAP)
            self._pending.add(piece)
            if isinstance(piece, Finished):
                self.metrics.rows_finished(sum(item.num_tokens for item in piece.items))
            self._commit_if_due(is_window_open=is_window_open)

    def _is_behind_gap(self, item: Item) -> bool:
        """Whether records done earlier lie between the pending rows and this one: one checkpoint cannot span them."""
        last = self._pending.last
        return last is not None and bool(intersection(((last.ordinal + 1, item.ordinal),), self._done_before))

    def _run_alone(self, items: tuple[Item, ...], *, is_fp32: bool = False) -> Outcome:
        self._refuse_late()
        self._note(items[0], items[-1].ordinal + 1)
        self.model.submit([item.payload for item in items], is_fp32=is_fp32)
        return self._wait()

    def _receive(self) -> Outcome | None:
        outcome = self.model.receive(POLL_S)
        if outcome is not None:
            self.metrics.batch_ended(_OUTCOMES[type(outcome)])
        return outcome

    def _wait(self) -> Outcome:
        while (outcome := self._receive()) is None:
            self._refuse_late()
        return outcome

    def _refuse_late(self) -> None:
        if not self.is_draining():
            return
        if self._drain_until is None:
            self._drain_until = self.clock() + min(MAX_DRAIN_WAIT_S, self.settings.grace_seconds / 4)
        if self.clock() > self._drain_until:
            raise _Leaving

    def _collect_sound(self) -> None:
        """On a drain, take what the model process finishes in time, up to the first batch that failed."""
        while self._in_flight:
            outcome = self._wait()
            batch = self._in_flight.popleft()
            if not self._isolator.is_sound(outcome):
                return
            self._take_skipped(batch.skipped)
            self._take_all(self._isolator.resolve(batch.items, outcome))

    def _commit_if_due(self, *, is_window_open: bool = False) -> None:
        pending = Pending(
            num_records=self._pending.num_records + len(self._pending.quarantined),
            num_bytes=self._pending.num_bytes,
            seconds=self.clock() - self._last_commit,
        )
        reason = checkpoint_due(self.settings.checkpoint, pending, is_window_open=is_window_open)
        if reason is not None:
            self._commit(reason)
        else:
            self.writer.check()

    def _commit(self, reason: CheckpointReason) -> None:
        now = self.clock()
        last = self._pending.last
        budget = self._isolator.fitting_tokens
        before = self.held.current.hints
        hints = None if budget in (None, self._committed_budget) else replace(before, token_budget=budget)
        self.writer.submit(
            Job(
                pending=self._pending,
                reason=reason,
                seconds=now - self._last_commit,
                records=self._num_records,
                bytes_done=last.position if last else None,
                hints=hints,
            )
        )
        self._committed_budget = budget if hints else self._committed_budget
        self._pending = PendingRows()
        self._last_commit = now
