"""One worker's life: claim, work, drain, release, and what each way to end leaves behind."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contract.errors import Fenced, ModelError
from contract.manifest import ShardStatus
from contract.names import ExitCode, FailureClass
from contract.store.errors import AccessDenied, Unavailable
from contract.store.local import LocalStore
from contract.transitions import claimed, first_claim, released
from tests import make
from tests.worker.build import (
    NOW,
    RIVAL,
    SmallRun,
    checkpoints,
    expected_rows,
    model,
    proteins,
    put_manifest,
    settings,
    without,
)
from worker.model_client import Outcome, Rows
from worker.records.record import Record
from worker.run import MAX_CLAIM_WAIT_S, Worker

MakeRun = Callable[..., SmallRun]

SEQUENCES = proteins(40)
NUM_BATCHES = 10
"""Of the sequences above, at 60 tokens a batch; a test checks it."""


def after_outcomes(worker: Worker, number: int, act: Callable[[], None]) -> None:
    """Call `act` once, as soon as so many batches have come back from the model process, well or ill."""
    outcomes: list[Outcome] = []

    def look(outcome: Outcome | None) -> None:
        if outcome is not None:
            outcomes.append(outcome)
        if len(outcomes) >= number and not has_acted:
            has_acted.append(True)
            act()

    has_acted: list[bool] = []
    worker.model.on_receive = look


def num_rows(worker: Worker) -> int:
    """Rows that came back from the model process."""
    return sum(len(outcome.values) for outcome in worker.model.outcomes if isinstance(outcome, Rows))


def complete_with(run: SmallRun) -> None:
    """Another worker completes the run."""
    assert run.worker().run() is ExitCode.NO_WORK_LEFT
    assert all(run.manifest(entry.shard).status is ShardStatus.COMPLETE for entry in run.plan.shards)


def test_the_sequences_make_as_many_batches_as_the_tests_below_believe(small_run: MakeRun) -> None:
    """Guards the drain tests against running past the end."""
    run = small_run(SEQUENCES, settings=settings(model=model()))
    worker = run.worker()

    worker.run()

    assert len(worker.model.submitted) == NUM_BATCHES


@pytest.mark.parametrize("number", range(NUM_BATCHES - 2))  # the two in the process then are finished too
def test_a_drain_keeps_every_finished_batch(small_run: MakeRun, number: int) -> None:
    """SIGTERM after any batch: all rows that came back are committed, the shard is free, one attempt is on record."""
    run = small_run(SEQUENCES, settings=settings(model=model(), checkpoint=checkpoints(every_records=11)))
    worker = run.worker()
    after_outcomes(worker, number, worker.drain.set)

    code = worker.run()

    found = run.manifest()
    (attempt,) = found.attempts
    assert code is ExitCode.DRAINED
    assert len(run.rows()) == num_rows(worker) < len(SEQUENCES)
    assert (found.status, found.owner, found.not_before) == (ShardStatus.PENDING, None, None)
    assert (attempt.uid, attempt.failure_class, attempt.counted) == (
        worker.owner.uid,
        FailureClass.SPOT_EVICTION,
        False,
    )
    complete_with(run)
    assert run.rows() == expected_rows(SEQUENCES)
    assert len(run.manifest().attempts) == 1


@pytest.mark.parametrize(
    ("harm", "grace_seconds", "numbers"),
    [("raise", 0.0, range(2, 14, 3)), ("segfault", 0.0, range(2, 14, 3)), ("raise", 30.0, range(4))],
    ids=["raise", "segfault", "raise, with time left"],
)
def test_a_drain_around_a_batch_that_fails_leaves_no_hole(
    small_run: MakeRun, harm: str, grace_seconds: float, numbers: range
) -> None:
    """Before, in and after it: what was resolved is committed up to the first open record, and nothing behind it."""
    for number in numbers:
        drained_around_a_failure(small_run, harm, grace_seconds, number)


def drained_around_a_failure(small_run: MakeRun, harm: str, grace_seconds: float, number: int) -> None:
    """One run whose worker is asked to leave after so many outcomes, and its completion by another."""
    sequences = [f"X{text}" if place in {13, 14} else text for place, text in enumerate(SEQUENCES)]
    own = settings(model=model(harm=harm, on="X"), grace_seconds=grace_seconds)
    run = small_run(sequences, name=f"after-{number}", settings=own)
    worker = run.worker()
    after_outcomes(worker, number, worker.drain.set)

    code = worker.run()

    done = run.manifest().settled
    assert code in {ExitCode.DRAINED, ExitCode.NO_WORK_LEFT}
    assert len(done) <= 1
    assert not done or done[0][0] == 0
    complete_with(run)
    assert run.quarantine() == {"r13": "PoisonInput", "r14": "PoisonInput"}
    assert run.rows() == without(expected_rows(sequences), "r13", "r14")


def test_a_drain_takes_nothing_behind_a_batch_that_failed(small_run: MakeRun) -> None:
    """The first of the two in the process raises, the other is fine: its rows would lie behind a hole."""
    sequences = [f"X{text}" if place == 10 else text for place, text in enumerate(SEQUENCES)]
    run = small_run(sequences, settings=settings(model=model(harm="raise", on="X")))
    worker = run.worker()
    receive = worker.model.receive

    def interrupted(timeout_s: float) -> Outcome | None:
        if len(worker.model.submitted) == 4 and not worker.drain.is_set():
            worker.drain.set()
            return None
        return receive(timeout_s)

    worker.model.receive = interrupted

    code = worker.run()

    batches = [payloads for payloads, _ in worker.model.submitted]
    assert code is ExitCode.DRAINED
    assert any(text.startswith("X") for text in batches[2])
    assert run.manifest().done == ((0, len(batches[0] + batches[1])),)


def test_a_drain_does_not_wait_for_a_batch_that_hangs(small_run: MakeRun) -> None:
    """Long before the no-progress timeout: what came back before is committed, exit 143."""
    sequences = [f"X{text}" if place == 13 else text for place, text in enumerate(SEQUENCES)]
    run = small_run(sequences, settings=settings(model=model(harm="hang", on="X"), grace_seconds=0.4))
    worker = run.worker()
    worker.model.on_receive = lambda outcome: worker.drain.set() if outcome is None and num_rows(worker) >= 8 else None

    code = worker.run()

    assert code is ExitCode.DRAINED
    assert len(run.rows()) == num_rows(worker) <= 13


def test_a_drain_does_not_wait_for_a_model_that_loads(small_run: MakeRun, tmp_path: Path) -> None:
    """Weights of minutes: the shard is given back at once."""
    slow = model("build_slowly", gate=str(tmp_path / "never"))
    run = small_run(SEQUENCES, settings=settings(model=slow, grace_seconds=0.4))
    worker = run.worker()
    worker.model.on_receive = lambda _: worker.drain.set()

    code = worker.run()

    assert code is ExitCode.DRAINED
    assert run.manifest().owner is None


def test_a_drain_during_the_reload_after_a_death_keeps_what_was_finished(small_run: MakeRun, tmp_path: Path) -> None:
    """The process died, the new one loads for ever, SIGTERM comes: the rows from before are committed."""
    sequences = [f"X{text}" if place == 30 else text for place, text in enumerate(SEQUENCES)]
    run = small_run(sequences, settings=settings(model=model(harm="segfault", on="X"), grace_seconds=0.4))
    worker = run.worker()

    def look(outcome: Outcome | None) -> None:
        if worker.model.num_restarts == 0:
            worker.model._settings = model("build_slowly", gate=str(tmp_path / "never"))
        elif outcome is None:
            worker.drain.set()

    worker.model.on_receive = look

    code = worker.run()

    assert code is ExitCode.DRAINED
    assert len(run.rows()) == num_rows(worker) >= 20


def test_a_drain_that_somebody_intended_is_no_eviction(small_run: MakeRun) -> None:
    """The attempt says what it was accounted as."""
    run = small_run(SEQUENCES, settings=settings(model=model()))
    worker = run.worker()
    worker.drain_class = lambda: FailureClass.INTENDED
    after_outcomes(worker, 2, worker.drain.set)

    worker.run()

    assert [attempt.failure_class for attempt in run.manifest().attempts] == [FailureClass.INTENDED]


def test_a_worker_asked_to_leave_before_it_starts_claims_nothing(small_run: MakeRun) -> None:
    """Exit 143, no manifest."""
    run = small_run(SEQUENCES)
    worker = run.worker()
    worker.drain.set()

    assert worker.run() is ExitCode.DRAINED
    assert [entry.key for entry in run.store.list()] == ["g0001/plan.json"]


def test_two_workers_share_the_shards_and_no_record_is_done_twice(small_run: MakeRun) -> None:
    """Each begins at its own place; together they do everything once."""
    run = small_run(SEQUENCES, num_shards=4, settings=settings(model=model(), num_workers=2))
    first, second = run.worker(worker_index=0), run.worker(worker_index=1)
    after_outcomes(first, 3, first.drain.set)

    codes = [first.run(), second.run()]

    assert codes == [ExitCode.DRAINED, ExitCode.NO_WORK_LEFT]
    assert run.rows() == expected_rows(SEQUENCES)
    assert num_rows(first) + num_rows(second) == len(SEQUENCES)


def test_a_bad_input_object_fails_only_its_shard(small_run: MakeRun) -> None:
    """A file that is no FASTA: failed, with object and offset; the good one is complete, and the worker goes on."""
    run = small_run(SEQUENCES, files={"a.fasta": b"this is not a FASTA file\n"}, settings=settings(model=model()))

    code = run.worker().run()

    bad = run.manifest(0)
    assert code is ExitCode.NO_WORK_LEFT
    assert (bad.status, bad.owner) == (ShardStatus.FAILED, None)
    assert bad.failure is not None
    assert bad.failure.failure_class is FailureClass.CONFIGURATION
    assert "a.fasta: at offset 0" in bad.failure.detail
    assert run.manifest(1).status is ShardStatus.COMPLETE
    assert run.rows() == expected_rows(SEQUENCES)


def test_damage_in_an_object_keeps_every_sound_record_before_it(small_run: MakeRun) -> None:
    """A truncated gzip: all complete records are committed with their own rows, and the next shard gets its own too."""
    source = random.Random(5)
    texts = ["".join(source.choices("ACDEFGHIKLMNPQRSTVWY", k=30)) for _ in range(400)]
    whole = gzip.compress("".join(f">a{number}\n{text}\n" for number, text in enumerate(texts)).encode())
    run = small_run(SEQUENCES, files={"a.fasta.gz": whole[: len(whole) // 2]}, settings=settings(model=model()))

    code = run.worker().run()

    bad = run.manifest(0)
    (num_sound,) = (following for _, following in bad.done)
    of_a = {f"a{number}": row for number, row in enumerate(expected_rows(texts).values())}
    assert code is ExitCode.NO_WORK_LEFT
    assert bad.status is ShardStatus.FAILED
    assert num_sound > 100
    assert run.rows() == {
        **{name: row for name, row in of_a.items() if int(name[1:]) < num_sound},
        **expected_rows(SEQUENCES),
    }
    assert list(readable(whole[: len(whole) // 2]))[:-1] == [f"a{number}" for number in range(num_sound)]


def readable(truncated: bytes) -> Iterator[str]:
    """Ids of the records in what a truncated gzip still holds; the last one may be incomplete."""
    text = zlib.decompressobj(31).decompress(truncated).decode()
    yield from (part.split("\n")[0] for part in text.split(">")[1:])


def failing(run: SmallRun, worker: Worker, *, after: int, error: Exception) -> None:
    """The worker's reader fails with `error` after so many records."""
    read = worker.read_records

    def broken(*args: Any) -> Iterator[Record]:
        for record in read(*args):
            if record.ordinal == after:
                raise error
            yield record

    worker.read_records = broken


def test_an_input_store_that_does_not_answer_ends_the_worker_and_loses_nothing(small_run: MakeRun) -> None:
    """Finished rows are committed, the shard stays ours for whoever judges, and a resume completes it."""
    run = small_run(SEQUENCES, settings=settings(model=model()))
    worker = run.worker()
    failing(run, worker, after=25, error=Unavailable("in.fasta", "timed out"))

    with pytest.raises(Unavailable):
        worker.run()

    assert (run.manifest().done, run.manifest().owner) == (((0, 25),), worker.owner)


def test_a_model_error_keeps_what_was_finished(small_run: MakeRun) -> None:
    """The model's rows stop matching the batch: what came before is committed, the shard stays ours."""
    run = small_run(SEQUENCES, settings=settings(model=model()))
    worker = run.worker()
    receive = worker.model.receive

    def cut(timeout_s: float) -> Outcome | None:
        outcome = receive(timeout_s)
        if isinstance(outcome, Rows) and num_rows(worker) > 20:
            return replace(outcome, values=outcome.values[1:])
        return outcome

    worker.model.receive = cut

    with pytest.raises(ModelError, match="must return one row for each record"):
        worker.run()

    ((start, following),) = run.manifest().done
    assert start == 0
    assert 10 <= following <= 20
    assert run.manifest().owner == worker.owner


def test_a_model_that_cannot_be_loaded_is_not_held_against_the_shard(small_run: MakeRun) -> None:
    """The shard is given back unharmed, the attempt counts, and the last words name no shard: the run is to blame."""
    run = small_run(SEQUENCES, settings=settings(model=model("build_raising")))
    worker = run.worker()

    with pytest.raises(ModelError, match="no weights here"):
        worker.run()

    found = run.manifest()
    assert (found.status, found.owner, found.failure, found.restarts.streak) == (ShardStatus.PENDING, None, None, 0)
    assert [(item.failure_class, item.counted) for item in found.attempts] == [(FailureClass.CONFIGURATION, True)]
    assert worker.recorder.flight.shard is None


class RefusingStore(LocalStore):
    """Takes manifests, refuses data."""

    def put_create(self, key: str, body: Any) -> Any:
        """See ObjectStore."""
        if "/data/" in key:
            raise AccessDenied(key, "PutObject is not allowed")
        return super().put_create(key, body)


def test_an_output_store_that_refuses_ends_the_worker_with_the_error(small_run: MakeRun) -> None:
    """AccessDenied reaches the top, nothing is committed, and the writer's thread is gone."""
    run = small_run(SEQUENCES, settings=settings(model=model(), checkpoint=checkpoints(every_records=5)))
    worker = run.worker(RefusingStore(run.root / "out"))

    with pytest.raises(AccessDenied):
        worker.run()

    assert run.manifest().checkpoints == ()
    assert run.manifest().owner == worker.owner


def test_a_takeover_fences_the_worker_at_its_next_commit(small_run: MakeRun) -> None:
    """A rival holds the shard at a higher epoch: Fenced, and the rival's manifest is untouched."""
    run = small_run(SEQUENCES, settings=settings(model=model(), checkpoint=checkpoints(every_records=5)))
    worker = run.worker()

    def take_over() -> None:
        current = run.manifest()
        free = released(current, attempt=make.attempt(current), commit_id="release")
        put_manifest(run.store, claimed(free, owner=RIVAL, commit_id="rival", now=NOW))

    after_outcomes(worker, 1, take_over)

    with pytest.raises(Fenced):
        worker.run()

    found = run.manifest()
    assert (found.owner, found.epoch) == (RIVAL, 2)
    assert found.commit_id == "rival"


def in_backoff(run: SmallRun, seconds: float) -> None:
    """Shard 0 was given back and may be claimed again in so many seconds."""
    current = first_claim(run.plan.shards[0], generation=1, owner=RIVAL, commit_id="claim", now=NOW)
    not_before = datetime.now(UTC) + timedelta(seconds=seconds)
    free = released(current, attempt=make.attempt(current), commit_id="release", not_before=not_before)
    put_manifest(run.store, free)


def test_a_short_backoff_is_waited_for(small_run: MakeRun) -> None:
    """Cheaper than ending and starting again."""
    run = small_run(SEQUENCES)
    in_backoff(run, 0.3)

    complete_with(run)

    assert len(run.rows()) == len(SEQUENCES)


def test_a_long_backoff_is_not_waited_for(small_run: MakeRun) -> None:
    """The worker ends: no work left for now."""
    run = small_run(SEQUENCES)
    in_backoff(run, MAX_CLAIM_WAIT_S + 60)

    assert run.worker().run() is ExitCode.NO_WORK_LEFT
    assert run.manifest().status is ShardStatus.PENDING


def test_a_wait_for_a_backoff_can_be_interrupted(small_run: MakeRun) -> None:
    """SIGTERM while waiting: exit 143 at once."""
    run = small_run(SEQUENCES)
    in_backoff(run, MAX_CLAIM_WAIT_S - 5)
    worker = run.worker()
    clock, drain = worker.clock, worker.drain

    def looked() -> float:
        drain.set()
        return clock()

    worker.clock = looked

    assert worker.run() is ExitCode.DRAINED
