"""Checkpoints: what is in the object, data before manifest, bounded memory, and no error swallowed."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
import torch

from contract import layout
from contract.errors import Fenced
from contract.flight import MAX_ID_LENGTH
from contract.manifest import Hints, ShardManifest, ShardStatus
from contract.names import CheckpointReason, QuarantineClass
from contract.settings import ModelSettings, RowKind
from contract.store.errors import OutcomeUnknown, Superseded
from contract.store.memory import MemoryStore
from contract.store.protocol import Body, ETag
from contract.transitions import claimed, first_claim, released
from tests import make
from tests.worker.build import (
    ME,
    NOW,
    RIVAL,
    ids,
    impatient,
    item,
    items,
    put_manifest,
    settings,
    shard,
    stored_manifest,
)
from tests.worker.doubtful_store import DoubtfulStore
from worker.batching import Item
from worker.checkpoint import CheckpointWriter, Job, PendingRows, build_content, serialise
from worker.held_shard import HeldShard
from worker.isolation import Finished, Refused
from worker.metrics import WorkerMetrics
from worker.model_client import Rows

MakeWriter = Callable[..., CheckpointWriter]


def held_in(store: MemoryStore) -> HeldShard:
    """Shard 0, just claimed."""
    first = first_claim(shard(), generation=1, owner=ME, commit_id="claim", now=NOW)
    put_manifest(store, first)
    etag = store.get(layout.build_shard_key(1, 0)).etag
    return HeldShard(committer=impatient(store), new_id=ids("mine"), current=first, etag=etag)


@pytest.fixture
def writer_on() -> Iterator[MakeWriter]:
    """Makes writers; ends their threads after the test."""
    made: list[CheckpointWriter] = []

    def make_writer(store: MemoryStore, *, on_committed: Callable[[], None] = lambda: None) -> CheckpointWriter:
        writer = CheckpointWriter(
            held_in(store),
            settings(),
            now=lambda: NOW,
            versions={"torch": "2"},
            buffer=BytesIO(),
            on_committed=on_committed,
            metrics=WorkerMetrics(run="run"),
        )
        made.append(writer)
        return writer

    yield make_writer
    for writer in made:
        writer.abandon()


def finished(records: tuple[Item, ...], *, splits: tuple[int, ...] | None = None) -> Finished:
    """Rows (n, n) for record n; per token as many as `splits` says."""
    numbers = torch.tensor([one.ordinal for one in records], dtype=torch.float32)
    if splits is not None:
        numbers = numbers.repeat_interleave(torch.tensor(splits))
    return Finished(records, Rows(values=torch.stack([numbers, numbers], dim=1), splits=splits))


def pending(*pieces: Finished | Refused) -> PendingRows:
    """Finished work."""
    rows = PendingRows()
    for piece in pieces:
        rows.add(piece)
    return rows


def job(*pieces: Finished | Refused, **options: Any) -> Job:
    """A commit of these pieces."""
    return Job(pending=pending(*pieces), reason=CheckpointReason.SEQUENCE_THRESHOLD, seconds=1.5, **options)


def content_of(rows: PendingRows, **model: Any) -> dict[str, Any]:
    """What would be stored of them."""
    return build_content(
        rows,
        first_claim(shard(), generation=1, owner=ME, commit_id="c", now=NOW),
        settings(model=ModelSettings(name="esm2", source="random:1", **model)),
        number=7,
        reason=CheckpointReason.SHUTDOWN,
        versions={"torch": "2"},
    )


def stored(store: MemoryStore, manifest: ShardManifest, place: int = 0) -> dict[str, Any]:
    """A committed object, loaded without trusting it."""
    return torch.load(io.BytesIO(store.get(manifest.checkpoints[place].key).body), weights_only=True)


def test_a_checkpoint_holds_rows_ids_and_what_they_are() -> None:
    """The three keys, and metadata that says which records of which object they are, and what made them."""
    rows = pending(finished((item(3), item(4, is_truncated=True))), finished((item(6),)))

    content = content_of(rows, dtype="float16")

    metadata = content["metadata"]
    assert set(content) == {"embeddings", "sequence_ids", "metadata"}
    assert content["embeddings"].tolist() == [[3, 3], [4, 4], [6, 6]]
    assert content["sequence_ids"] == ["r3", "r4", "r6"]
    assert metadata["offsets"].dtype is torch.int64
    assert metadata["offsets"].tolist() == [30, 40, 60]
    assert metadata["ordinals"].tolist() == [3, 4, 6]
    assert metadata["truncated"].tolist() == [1]
    assert {name: value for name, value in metadata.items() if not isinstance(value, torch.Tensor)} == {
        "object": "s3://in/a.fasta",
        "first": 3,
        "run": "run",
        "generation": 1,
        "shard": 0,
        "epoch": 1,
        "number": 7,
        "model": "esm2",
        "source": "random:1",
        "dtype": "float16",
        "kind": "pooled",
        "reason": "shutdown",
        "versions": {"torch": "2"},
    }


def test_rows_per_token_come_with_row_splits() -> None:
    """Record i has the rows from splits[i] to splits[i + 1], across all pieces."""
    rows = pending(finished(items(range(2)), splits=(2, 3)), finished(items([2]), splits=(1,)))

    content = content_of(rows, kind=RowKind.PER_TOKEN)

    assert content["metadata"]["row_splits"].tolist() == [0, 2, 5, 6]
    assert content["embeddings"][:, 0].tolist() == [0, 0, 1, 1, 1, 2]
    assert content["metadata"]["kind"] == "perToken"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_checkpoint_is_loaded_without_trusting_it(dtype: torch.dtype) -> None:
    """`weights_only=True` reads every dtype: there is no pickle of ours in it."""
    rows = PendingRows()
    rows.add(Finished(items([0]), Rows(values=torch.ones(1, 4, dtype=dtype), splits=None)))
    buffer = BytesIO()
    serialise(content_of(rows), buffer)

    loaded = torch.load(BytesIO(buffer.getvalue()), weights_only=True)

    assert loaded["embeddings"].dtype is dtype
    assert loaded["sequence_ids"] == ["r0"]


def test_a_reused_buffer_gives_the_same_bytes_as_a_fresh_one() -> None:
    """Whatever was in it before, longer or shorter: nothing of it is left."""
    small, large = content_of(pending(finished(items([0])))), content_of(pending(finished(items(range(999)))))
    reused = BytesIO()

    files = []
    for content in (small, large, small):
        size, digest = serialise(content, reused)
        assert (size, digest) == (len(reused.getvalue()), hashlib.sha256(reused.getvalue()).hexdigest())
        files.append(reused.getvalue())

    fresh = BytesIO()
    serialise(small, fresh)
    assert files[0] == files[2] == fresh.getvalue()
    assert len(files[1]) > len(files[0])


def test_pending_rows_count_what_they_hold() -> None:
    """Records and bytes of rows decide about triggers; verdicts are kept apart, their details cut."""
    refused = Refused(item(2), QuarantineClass.POISON_INPUT, "x" * 10_000, is_costly=True)

    rows = pending(finished(items(range(2))), refused)

    assert (rows.num_records, rows.num_bytes, rows.is_empty, rows.has_costly_verdict) == (2, 16, False, True)
    assert (rows.quarantined[0].ordinal, rows.quarantined[0].offset, rows.quarantined[0].id) == (2, 20, "r2")
    assert len(rows.quarantined[0].detail) == 500
    assert rows.last == item(1)
    assert pending().is_empty
    assert pending().last is None


def test_a_commit_names_the_object_it_has_put(writer_on: MakeWriter) -> None:
    """Key, size, checksum, range and resume point in the manifest are those of the stored object."""
    store = MemoryStore()
    writer = writer_on(store)

    writer.submit(job(finished(items(range(5))), bytes_done=50, hints=Hints(token_budget=9)))
    manifest = writer.finish()

    (entry,) = manifest.checkpoints
    body = store.get("g0001/data/00000/e0001-000001.pt").body
    assert manifest == stored_manifest(store)
    assert (entry.key, entry.number, entry.epoch) == ("g0001/data/00000/e0001-000001.pt", 1, 1)
    assert (entry.first, entry.next, entry.records, entry.next_offset, entry.seconds) == (0, 5, 5, 50, 1.5)
    assert (entry.bytes, entry.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert (manifest.bytes_done, manifest.hints.token_budget) == (50, 9)
    assert stored(store, manifest)["sequence_ids"] == [f"r{number}" for number in range(5)]


def test_a_last_commit_completes_the_shard(writer_on: MakeWriter) -> None:
    """Rows, a verdict in their midst, and the number of records: complete, owner null."""
    store = MemoryStore()
    writer = writer_on(store)
    refused = Refused(item(1), QuarantineClass.NON_FINITE, "NaN")

    writer.submit(job(finished(items([0])), refused, finished(items([2])), records=3))
    manifest = writer.finish()

    assert (manifest.status, manifest.owner, manifest.records) == (ShardStatus.COMPLETE, None, 3)
    assert manifest.done == ((0, 1), (2, 3))
    assert manifest.checkpoints[0].records == 2


def test_verdicts_alone_need_no_object(writer_on: MakeWriter) -> None:
    """Nothing is put but the manifest."""
    store = MemoryStore()
    writer = writer_on(store)

    writer.submit(job(Refused(item(0), QuarantineClass.INVALID_RECORD, "empty")))
    manifest = writer.finish()

    assert [entry.ordinal for entry in manifest.quarantined] == [0]
    assert [entry.key for entry in store.list()] == [layout.build_shard_key(1, 0)]


def test_a_verdict_stays_small_and_is_text_whatever_record_and_model_say(writer_on: MakeWriter) -> None:
    """A header without a blank for megabytes, and half of a surrogate pair in what a model raised, fit a manifest."""
    store = MemoryStore()
    writer = writer_on(store)
    record = replace(item(0), id="é" * 10_000_000)

    writer.submit(job(Refused(record, QuarantineClass.POISON_INPUT, "ValueError: \ud800")))
    verdict = writer.finish().quarantined[0]

    assert (verdict.id, verdict.detail) == ("é" * MAX_ID_LENGTH, "ValueError: ?")
    assert stored_manifest(store).quarantined == (verdict,)


def test_each_commit_has_a_key_of_its_own_and_is_told(writer_on: MakeWriter) -> None:
    """Numbers go up, and `on_committed` is called once for each."""
    told: list[int] = []
    store = MemoryStore()
    writer = writer_on(store, on_committed=lambda: told.append(len(stored_manifest(store).checkpoints)))

    for number in range(3):
        writer.submit(job(finished(items([number]))))
    manifest = writer.finish()

    assert [entry.number for entry in manifest.checkpoints] == [1, 2, 3]
    assert told == [1, 2, 3]


@pytest.mark.parametrize("fates", [["applied"], ["lost"], ["fine", "applied"], ["fine", "lost"]])
def test_lost_replies_commit_once(writer_on: MakeWriter, fates: list[str]) -> None:
    """Of the object or of the manifest, applied or not: one checkpoint, and its object is there."""
    store = DoubtfulStore()
    writer = writer_on(store)
    store.fates = fates

    writer.submit(job(finished(items(range(5)))))
    manifest = writer.finish()

    assert (stored_manifest(store), len(manifest.checkpoints)) == (manifest, 1)
    assert stored(store, manifest)["sequence_ids"] == [f"r{number}" for number in range(5)]


def test_an_object_of_somebody_else_under_our_key_is_never_committed(writer_on: MakeWriter) -> None:
    """Epoch and number are ours alone; other bytes there mean that something is very wrong."""
    store = MemoryStore()
    writer = writer_on(store)
    store.put_create("g0001/data/00000/e0001-000001.pt", b"not ours")

    writer.submit(job(finished(items([0]))))

    with pytest.raises(Superseded):
        writer.finish()
    assert stored_manifest(store).checkpoints == ()


def test_a_fenced_writer_leaves_only_an_object_that_nobody_names(writer_on: MakeWriter) -> None:
    """The rows went up, the manifest is the rival's: nothing of ours is in it."""
    store = MemoryStore()
    writer = writer_on(store)
    free = released(stored_manifest(store), attempt=make.attempt(stored_manifest(store)), commit_id="release")
    put_manifest(store, claimed(free, owner=RIVAL, commit_id="rival", now=NOW))

    writer.submit(job(finished(items([0]))))

    with pytest.raises(Fenced):
        writer.finish()
    assert stored_manifest(store).owner == RIVAL
    assert stored_manifest(store).checkpoints == ()


class BlockedStore(MemoryStore):
    """Every put of data waits until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.may_pass = threading.Semaphore(0)
        self.num_arrived = threading.Semaphore(0)
        self.error: Exception | None = None

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        self.num_arrived.release()
        assert self.may_pass.acquire(timeout=20)
        if self.error is not None:
            raise self.error
        return super().put_create(key, body)


def submitted(writer: CheckpointWriter, number: int) -> tuple[threading.Thread, list[BaseException]]:
    """A submit in a thread of its own, and what it raises."""
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            writer.submit(job(finished(items([number]))))
        except BaseException as error:  # noqa: BLE001  (handed to the test)
            errors.append(error)

    thread = threading.Thread(target=submit, daemon=True)
    thread.start()
    return thread, errors


def test_a_slow_store_makes_submit_wait_so_memory_is_bounded(writer_on: MakeWriter) -> None:
    """One is written, one waits; the third submit returns only when the first is through."""
    store = BlockedStore()
    writer = writer_on(store)
    writer.submit(job(finished(items([0]))))
    assert store.num_arrived.acquire(timeout=20)
    writer.submit(job(finished(items([1]))))

    third, errors = submitted(writer, 2)
    third.join(0.2)
    was_waiting = third.is_alive()
    store.may_pass.release(3)
    third.join(20)
    manifest = writer.finish()

    assert was_waiting
    assert errors == []
    assert manifest.done == ((0, 3),)


def test_an_error_reaches_a_submit_that_waits_and_every_later_call(writer_on: MakeWriter) -> None:
    """The store refuses while a third commit waits for its place: nobody waits for ever, and nothing is swallowed."""
    store = BlockedStore()
    writer = writer_on(store)
    writer.submit(job(finished(items([0]))))
    assert store.num_arrived.acquire(timeout=20)
    writer.submit(job(finished(items([1]))))
    third, _ = submitted(writer, 2)

    store.error = PermissionError("refused")
    store.may_pass.release(3)
    third.join(20)

    assert not third.is_alive()
    with pytest.raises(PermissionError):
        writer.submit(job(finished(items([3]))))
    with pytest.raises(PermissionError):
        writer.check()
    with pytest.raises(PermissionError):
        writer.finish()
    assert writer.has_failed
    assert stored_manifest(store).checkpoints == ()


def test_an_unknown_outcome_is_an_error_and_later_commits_are_not_tried(writer_on: MakeWriter) -> None:
    """After a commit that may or may not be there, nothing may be built upon it."""
    store = DoubtfulStore()
    writer = writer_on(store)
    store.is_down = True
    writer.submit(job(finished(items([0]))))

    with pytest.raises(OutcomeUnknown):
        writer.finish()
    assert stored_of_down(store).version == 1


def stored_of_down(store: DoubtfulStore) -> ShardManifest:
    """The manifest, once the store is up again."""
    store.is_down = False
    return stored_manifest(store)


def test_abandon_ends_the_thread_of_a_writer_that_has_failed_with_a_full_queue(writer_on: MakeWriter) -> None:
    """The way out of a failure must not hang on its own queue."""
    store = BlockedStore()
    store.error = PermissionError("refused")
    writer = writer_on(store)
    writer.submit(job(finished(items([0]))))
    assert store.num_arrived.acquire(timeout=20)
    writer.submit(job(finished(items([1]))))

    leaving = threading.Thread(target=writer.abandon, daemon=True)
    leaving.start()
    leaving.join(0.2)
    store.may_pass.release(2)
    leaving.join(20)

    assert not leaving.is_alive()
    assert not writer._thread.is_alive()
    assert writer.has_failed


def test_finish_waits_for_everything_submitted(writer_on: MakeWriter) -> None:
    """The drain's last call: when it returns, all rows are in the manifest."""
    store = BlockedStore()
    writer = writer_on(store)
    for number in range(2):
        writer.submit(job(finished(items([number]))))
    store.may_pass.release(2)

    assert writer.finish().done == ((0, 2),)
