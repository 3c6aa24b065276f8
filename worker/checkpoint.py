"""Checkpoints: finished rows, serialised and uploaded off the main thread; data first, manifest last.

    1. torch.save into a reused buffer, sha256 over it
    2. put the object, if absent, under a key that holds shard, epoch and number
    3. commit the manifest that names it
Dying before 3 leaves an object that nobody names: it does not exist, and `cleanup` removes it. Dying after 3 loses
nothing. One checkpoint is written while the next fills up; a third has to wait, so memory is bounded by two. An error
stops the shard at the next call: nothing is computed that could not be kept.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from typing import Any

import numpy as np
import torch

from contract import layout
from contract.flight import MAX_ID_LENGTH
from contract.manifest import Checkpoint, Hints, Quarantined, ShardManifest, stamp
from contract.names import CheckpointReason
from contract.settings import WorkerSettings
from contract.transitions import committed
from worker.batching import Item
from worker.held_shard import HeldShard
from worker.isolation import Finished, Refused
from worker.metrics import WorkerMetrics

logger = logging.getLogger(__name__)

MAX_DETAIL_LENGTH = 500
"""Characters kept of why a record is quarantined. Its id is cut as well: every commit writes them all again."""

_SHUTDOWN_POLL_S = 0.05


@dataclass(slots=True)
class PendingRows:
    """Finished work of one contiguous run of records that no checkpoint holds yet."""

    finished: list[Finished] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    num_records: int = 0
    num_bytes: int = 0
    has_costly_verdict: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not self.finished and not self.quarantined

    @property
    def last(self) -> Item | None:
        """The last record with a row."""
        return self.finished[-1].items[-1] if self.finished else None

    def add(self, piece: Finished | Refused) -> None:
        """Take rows that follow, in file order, all taken before, or a verdict.

        A verdict on a record between others of a batch comes before their rows, or a checkpoint would count it as done.
        """
        if isinstance(piece, Refused):
            self.quarantined.append(
                Quarantined(
                    ordinal=piece.item.ordinal,
                    offset=piece.item.offset,
                    id=piece.item.id[:MAX_ID_LENGTH],
                    quarantine_class=piece.quarantine_class,
                    # What a user's model says of a record need not be text that UTF-8 can hold.
                    detail=piece.detail[:MAX_DETAIL_LENGTH].encode("utf-8", "replace").decode(),
                )
            )
            self.has_costly_verdict |= piece.is_costly
            return
        self.finished.append(piece)
        self.num_records += len(piece.items)
        self.num_bytes += piece.rows.values.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one commit holds: rows, verdicts, or the number of records now known."""

    pending: PendingRows
    reason: CheckpointReason
    seconds: float
    records: int | None = None
    """Records of the range, when it has been read to its end."""
    bytes_done: int | None = None
    hints: Hints | None = None


class CheckpointWriter:
    """Writes the checkpoints of one held shard in a thread of its own."""

    def __init__(
        self,
        held: HeldShard,
        settings: WorkerSettings,
        *,
        now: Callable[[], datetime],
        versions: dict[str, str],
        buffer: BytesIO,
        on_committed: Callable[[], None],
        metrics: WorkerMetrics,
    ) -> None:
        self._held = held
        self._settings = settings
        self._now = now
        self._versions = versions
        self._buffer = buffer
        self._on_committed = on_committed
        self._metrics = metrics
        self._number = 0
        self._stalled_s = 0.0
        """Seconds that `submit` has waited so far; the main thread alone writes it."""
        self._stalled_before_s = 0.0
        """Of them, those that a checkpoint tells of already."""
        self._error: BaseException | None = None
        self._jobs: queue.Queue[Job | None] = queue.Queue(1)
        self._thread = threading.Thread(target=self._write_all, name="checkpoint", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Hand over a commit; waits while one is being written and another waits. Raises what an earlier one failed with."""
        started_s = time.monotonic()
        while True:
            self.check()
            try:
                self._jobs.put(job, timeout=_SHUTDOWN_POLL_S)
            except queue.Full:
                continue
            waited_s = time.monotonic() - started_s
            self._stalled_s += waited_s
            self._metrics.stalled(waited_s)
            return

    @property
    def has_failed(self) -> bool:
        """Whether a commit failed: then no later one can be made."""
        return self._error is not None

    def check(self) -> None:
        """Raise what a commit failed with, if any."""
        if self._error is not None:
            raise self._error

    def finish(self) -> ShardManifest:
        """Wait until everything submitted is committed; returns the manifest. Raises what any commit failed with."""
        started_s = time.monotonic()
        self._stop()
        self._metrics.stalled(time.monotonic() - started_s)
        self.check()
        return self._held.current

    def abandon(self) -> None:
        """Wait for the commit under way and drop what is queued behind an error: for the path out of another failure."""
        self._stop()

    def _stop(self) -> None:
        while self._thread.is_alive():
            try:
                self._jobs.put(None, timeout=_SHUTDOWN_POLL_S)
                break
            except queue.Full:
                continue
        self._thread.join()

    def _write_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is not None:
                continue
            try:
                self._write(job)
                self._on_committed()
            except BaseException as error:  # noqa: BLE001  (kept, and raised by the next call on the main thread)
                self._error = error

    def _write(self, job: Job) -> None:
        started = time.monotonic()
        held, bytes_before = self._held, self._held.current.bytes_done
        checkpoint = self._put_rows(job) if job.pending.finished else None
        held.commit(
            lambda current, commit_id: committed(
                current,
                commit_id=commit_id,
                checkpoint=checkpoint,
                quarantined=job.pending.quarantined,
                records=job.records,
                bytes_done=job.bytes_done,
                hints=job.hints,
            )
        )
        elapsed_s = time.monotonic() - started
        self._metrics.committed(
            num_records=checkpoint.records if checkpoint else 0,
            input_bytes=held.current.bytes_done - bytes_before,
            quarantined=[item.quarantine_class for item in job.pending.quarantined],
        )
        if checkpoint is not None:
            self._metrics.checkpoint_committed(reason=job.reason, num_bytes=checkpoint.bytes, seconds=elapsed_s)
        logger.info(
            "committed",
            extra={
                "shard": held.current.shard,
                "epoch": held.current.epoch,
                "num_records": checkpoint.records if checkpoint else 0,
                "num_bytes": checkpoint.bytes if checkpoint else 0,
                "num_quarantined": len(job.pending.quarantined),
                "reason": job.reason.value,
                "elapsed_s": round(elapsed_s, 3),
            },
        )

    def _put_rows(self, job: Job) -> Checkpoint:
        manifest = self._held.current
        started = time.monotonic()
        stalled_s = self._stalled_s
        self._number += 1
        items = [item for piece in job.pending.finished for item in piece.items]
        created_at = self._now()
        content = build_content(
            job.pending, manifest, self._settings, number=self._number, reason=job.reason, versions=self._versions
        )
        content["metadata"]["createdAt"] = stamp(created_at)
        size, digest = serialise(content, self._buffer)
        key = layout.build_data_key(manifest.generation, manifest.shard, manifest.epoch, self._number)
        self._held.committer.create_immutable(key, self._buffer)
        stall_s, self._stalled_before_s = stalled_s - self._stalled_before_s, stalled_s
        return Checkpoint(
            key=key,
            number=self._number,
            epoch=manifest.epoch,
            first=items[0].ordinal,
            next=items[-1].ordinal + 1,
            records=len(items),
            bytes=size,
            sha256=digest,
            created_at=created_at,
            seconds=round(job.seconds, 3),
            write_seconds=round(time.monotonic() - started, 3),
            stall_seconds=round(stall_s, 3),
            next_offset=items[-1].next_offset,
        )


def build_content(
    pending: PendingRows,
    manifest: ShardManifest,
    settings: WorkerSettings,
    *,
    number: int,
    reason: CheckpointReason,
    versions: dict[str, str],
) -> dict[str, Any]:
    """What a checkpoint holds: `embeddings` [records, D] (per token: [tokens, D]), `sequence_ids`, `metadata`.

    Only tensors, lists, numbers and text, so `torch.load(weights_only=True)` reads it and no pickle is ever trusted.
    """
    items = [item for piece in pending.finished for item in piece.items]
    values = [piece.rows.values for piece in pending.finished]
    metadata: dict[str, Any] = {
        "object": manifest.object,
        "offsets": torch.tensor([item.offset for item in items], dtype=torch.int64),
        "ordinals": torch.tensor([item.ordinal for item in items], dtype=torch.int64),
        "first": items[0].ordinal,
        "truncated": torch.tensor([row for row, item in enumerate(items) if item.is_truncated], dtype=torch.int64),
        "run": settings.run,
        "generation": manifest.generation,
        "shard": manifest.shard,
        "epoch": manifest.epoch,
        "number": number,
        "model": settings.model.name,
        "source": settings.model.source,
        "dtype": settings.model.dtype,
        "kind": settings.model.kind.value,
        "reason": reason.value,
        "versions": dict(versions),
    }
    if pending.finished[0].rows.splits is not None:
        splits = [split for piece in pending.finished for split in piece.rows.splits or ()]
        metadata["row_splits"] = torch.from_numpy(np.cumsum([0, *splits], dtype=np.int64))
    return {
        "embeddings": values[0] if len(values) == 1 else torch.cat(values),
        "sequence_ids": [item.id for item in items],
        "metadata": metadata,
    }


def serialise(content: dict[str, Any], buffer: BytesIO) -> tuple[int, str]:
    """Write `content` into `buffer` from its start; returns its size in bytes and sha256 (hex).

    The buffer is reused: growing a fresh one per checkpoint stalls the process three to four times as long (page faults
    under the interpreter lock; measured at 64 MiB on 2 cores: 71 to 110 ms against 22 to 25 ms).
    """
    buffer.seek(0)
    torch.save(content, buffer)
    size = buffer.tell()
    buffer.truncate(size)
    buffer.seek(0)
    with buffer.getbuffer() as view:
        return size, hashlib.sha256(view).hexdigest()
