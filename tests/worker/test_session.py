"""One shard at work: rows in order, triggers, poison, memory, suspects, gaps; real records, real model processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import pytest
import torch

from contract.errors import ModelError, ModelProcessDied, OutOfMemory
from contract.manifest import ShardManifest, ShardStatus
from contract.names import ExitCode
from contract.ranges import difference, from_ordinals
from contract.settings import ModelSettings, RowKind
from contract.transitions import first_claim, released, requeued
from tests import make
from tests.models_for_tests import build_per_token
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
    ticking,
    without,
)
from worker import model_client
from worker.models.kmer import LETTERS
from worker.run import Worker

MakeRun = Callable[..., SmallRun]

SEQUENCES = proteins(40)
BAD = 13
"""The record that does harm where a test has one."""


def with_bad(sequences: list[str] = SEQUENCES, *places: int) -> list[str]:
    """The sequences with an X at the start of some (record 13 when none is named)."""
    return [f"X{text}" if number in (places or (BAD,)) else text for number, text in enumerate(sequences)]


def harmful(**parameters: Any) -> Any:
    """Settings of a run whose model does harm when a value contains an X."""
    return settings(model=model(**{"on": "X", **parameters}))


def completed(run: SmallRun, **changes: Any) -> Worker:
    """A worker that has completed the run."""
    worker = run.worker(**changes)
    assert worker.run() is ExitCode.NO_WORK_LEFT
    assert all(run.manifest(entry.shard).status is ShardStatus.COMPLETE for entry in run.plan.shards)
    return worker


def test_a_whole_run_of_kmer_equals_the_direct_computation(small_run: MakeRun) -> None:
    """Each record's row is its pair frequencies, counted here one pair at a time; all shards are complete."""
    run = small_run(SEQUENCES, num_shards=3, settings=settings(checkpoint=checkpoints(every_records=7)))

    completed(run)

    rows = run.rows()
    assert len(run.plan.shards) == 3
    assert len(rows) == len(SEQUENCES)
    for number, text in enumerate(SEQUENCES):
        pairs = [LETTERS.index(a) * 20 + LETTERS.index(b) for a, b in pairwise(text)]
        expected = torch.bincount(torch.tensor(pairs), minlength=400).float() / len(pairs)
        assert torch.equal(torch.tensor(rows[f"r{number}"]), expected), text


def test_checkpoints_are_contiguous_in_file_order_and_say_whose_rows_they_hold(small_run: MakeRun) -> None:
    """End to end they are the file; offsets point at the headers."""
    run = small_run(SEQUENCES, settings=settings(model=model(), checkpoint=checkpoints(every_records=7)))

    completed(run)

    contents = run.contents()
    text = run.source.read_bytes()
    names = [name for content in contents for name in content["sequence_ids"]]
    offsets = [offset for content in contents for offset in content["metadata"]["offsets"].tolist()]
    assert names == [f"r{number}" for number in range(40)]
    assert [text[offset : offset + 8].split()[0].decode() for offset in offsets] == [f">{name}" for name in names]
    assert len(contents) >= 4


def test_rows_per_token_go_all_the_way(small_run: MakeRun) -> None:
    """One row a letter, and `row_splits` says which are whose."""
    run = small_run(SEQUENCES, settings=settings(model=model("build_per_token", kind=RowKind.PER_TOKEN)))

    completed(run)

    (content,) = run.contents()
    splits = content["metadata"]["row_splits"].tolist()
    for number, text in enumerate(SEQUENCES):
        rows = content["embeddings"][splits[number] : splits[number + 1]]
        assert torch.equal(rows, build_per_token()([text])[0])


@pytest.mark.parametrize(
    ("harm", "verdict", "max_restarts"),
    [
        ("segfault", "PoisonInput", 4),
        ("exit", "PoisonInput", 4),
        ("device", "PoisonInput", 4),
        ("hang", "PoisonInput", 4),
        ("native-hang", "PoisonInput", 4),
        ("kill", "PoisonInput", 5),  # one chance more: SIGKILL may have come from elsewhere
        ("raise", "PoisonInput", 0),
        ("memory", "OutOfMemory", 0),
        ("host-memory", "OutOfMemory", 0),
    ],
)
def test_one_bad_record_is_quarantined_and_nothing_else(
    small_run: MakeRun, harm: str, verdict: str, max_restarts: int
) -> None:
    """Exactly that record, with its class; all others have the rows of an undisturbed run; few restarts."""
    sequences = with_bad()
    run = small_run(sequences, settings=replace(harmful(harm=harm), no_progress_seconds=0.6))

    worker = completed(run)

    assert run.quarantine() == {f"r{BAD}": verdict}
    assert run.rows() == without(expected_rows(sequences), f"r{BAD}")
    assert worker.model.num_restarts <= max_restarts


def test_a_record_that_needs_more_memory_ends_its_worker_while_a_larger_one_can_be_had(
    small_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done before it is committed, and nothing is in quarantine; the largest worker does quarantine it."""
    kills = count()
    monkeypatch.setattr(model_client, "num_memory_kills", lambda: next(kills))  # the kernel's count, risen at each look
    sequences = with_bad()
    run = small_run(sequences, settings=replace(harmful(harm="kill"), memory_bytes=2**30))

    with pytest.raises(OutOfMemory, match=rf"record {BAD} alone .* container's memory limit"):
        run.worker().run()
    assert run.quarantine() == {}
    assert set(run.rows()) == {f"r{number}" for number in range(BAD)}

    largest = small_run(sequences, name="largest", settings=harmful(harm="kill"))
    completed(largest)
    assert largest.quarantine() == {f"r{BAD}": "OutOfMemory"}


def test_a_record_whose_row_is_nan_is_quarantined_and_nothing_else(small_run: MakeRun) -> None:
    """NaN in fp32 too: NonFinite; no restart."""
    sequences = with_bad()
    run = small_run(sequences, settings=harmful(nan_on="X"))

    worker = completed(run)

    assert run.quarantine() == {f"r{BAD}": "NonFinite"}
    assert run.rows() == without(expected_rows(sequences), f"r{BAD}")
    assert worker.model.num_restarts == 0


@pytest.mark.parametrize("places", [(0,), (39,), (12, 13, 14), (0, 20, 39)], ids=str)
def test_bad_records_are_found_wherever_they_are(small_run: MakeRun, places: tuple[int, ...]) -> None:
    """First, last, side by side, far apart: each costs at most four restarts."""
    sequences = with_bad(SEQUENCES, *places)
    run = small_run(sequences, settings=harmful(harm="segfault"))

    worker = completed(run)

    bad = [f"r{number}" for number in places]
    assert run.quarantine() == dict.fromkeys(bad, "PoisonInput")
    assert run.rows() == without(expected_rows(sequences), *bad)
    assert worker.model.num_restarts <= 4 * len(places)


def test_a_verdict_that_cost_restarts_is_committed_before_it_could_be_paid_for_twice(small_run: MakeRun) -> None:
    """A checkpoint of its own, as soon as the next batch has worked; a raising record waits for the ordinary ones."""
    costly = small_run(with_bad(), name="costly", settings=harmful(harm="segfault"))
    cheap = small_run(with_bad(), name="cheap", settings=harmful(harm="raise"))

    completed(costly)
    completed(cheap)

    assert costly.reasons() == ["quarantine", "shutdown"]
    assert cheap.reasons() == ["shutdown"]


@pytest.mark.parametrize(
    ("harm", "error"),
    [("raise", ModelError), ("memory", OutOfMemory), ("exit", ModelProcessDied)],
)
def test_a_model_that_fails_on_everything_blames_no_record(
    small_run: MakeRun, harm: str, error: type[Exception]
) -> None:
    """The worker ends, nothing is in quarantine, and the shard stays ours for whoever judges."""
    run = small_run(SEQUENCES, settings=harmful(harm=harm, on=""))
    worker = run.worker()

    with pytest.raises(error):
        worker.run()

    assert run.quarantine() == {}
    assert run.manifest().owner == worker.owner
    assert worker.model.num_restarts <= 9  # two for the batch, two for each of four records


def test_batches_that_do_not_fit_are_split_and_the_budget_is_remembered(small_run: MakeRun) -> None:
    """Nothing is quarantined; the manifest's hint lies below what failed, and later batches obey it."""
    run = small_run(SEQUENCES, settings=harmful(above_tokens=40))

    worker = completed(run)

    budget = run.manifest().hints.token_budget
    sizes = [sum(map(len, payloads)) for payloads, _ in worker.model.submitted]
    assert (run.quarantine(), worker.model.num_restarts) == ({}, 0)
    assert run.rows() == expected_rows(SEQUENCES)
    assert budget is not None
    assert 15 <= budget <= 30
    assert max(sizes[-5:]) <= budget
    assert max(sizes) > 40


def test_the_next_worker_begins_with_the_remembered_budget(small_run: MakeRun) -> None:
    """No batch above it is ever tried."""
    run = small_run(SEQUENCES, settings=harmful(above_tokens=40))
    given_back(run, hints=25)

    worker = completed(run)

    assert max(sum(map(len, payloads)) for payloads, _ in worker.model.submitted) <= 25
    assert run.rows() == expected_rows(SEQUENCES)


def given_back(
    run: SmallRun, *, hints: int | None = None, in_flight: tuple[tuple[int, int], ...] = ()
) -> ShardManifest:
    """Shard 0 was held by a worker that died."""
    current = first_claim(run.plan.shards[0], generation=1, owner=RIVAL, commit_id="claim", now=NOW)
    current = replace(current, hints=replace(current.hints, token_budget=hints))
    free = released(current, attempt=make.attempt(current), commit_id="release", in_flight=in_flight)
    put_manifest(run.store, free)
    return free


def test_suspects_run_with_nothing_beside_them(small_run: MakeRun) -> None:
    """Records 5 to 9 were in flight when a worker died: their batch enters an empty process and nothing joins it."""
    run = small_run(SEQUENCES, settings=harmful())
    given_back(run, in_flight=((5, 10),))

    worker = completed(run)

    entries = worker.model.submitted
    place = next(place for place, (payloads, _) in enumerate(entries) if payloads == SEQUENCES[5:10])
    assert entries[place][1] == entries[place + 1][1] == 0
    assert any(num_beside == 1 for _, num_beside in entries)
    assert run.rows() == expected_rows(SEQUENCES)
    assert run.manifest().strikes == ()


@pytest.mark.parametrize(
    ("thresholds", "clock", "reason"),
    [
        ({"every_records": 8}, None, "sequence_threshold"),
        ({"every_bytes": 8 * 12}, None, "bytes"),
        ({"every_seconds": 8}, ticking(), "time_threshold"),
        ({"every_seconds": 10, "emergency_seconds": 10}, ticking(), "emergency_time_override"),
    ],
    ids=["records", "bytes", "seconds", "emergency"],
)
def test_each_trigger_writes_checkpoints_with_its_reason(
    small_run: MakeRun, thresholds: dict[str, float], clock: Callable[[], float] | None, reason: str
) -> None:
    """All but the last one, which ends the shard; and all rows are there."""
    run = small_run(SEQUENCES, settings=settings(model=model(), checkpoint=checkpoints(**thresholds)))
    worker = run.worker()
    if clock is not None:
        worker.clock = clock

    worker.run()

    reasons = run.reasons()
    assert set(reasons) <= {reason, "shutdown"}
    assert reasons.count(reason) >= 2
    assert run.rows() == expected_rows(SEQUENCES)


def test_inside_a_batch_that_is_taken_apart_only_the_emergency_trigger_fires(small_run: MakeRun) -> None:
    """One batch of forty, halved down to one record: thresholds on records wait for its end, an emergency does not."""
    one_batch = replace(model(harm="raise", on="X"), max_tokens_per_batch=10_000)
    patient = small_run(
        with_bad(), name="patient", settings=settings(model=one_batch, checkpoint=checkpoints(every_records=1))
    )
    hasty = small_run(
        with_bad(), name="hasty", settings=settings(model=one_batch, checkpoint=checkpoints(emergency_seconds=5))
    )
    worker = hasty.worker()
    worker.clock = ticking()

    completed(patient)
    worker.run()

    assert len(patient.reasons()) == 1
    assert "emergency_time_override" in hasty.reasons()
    assert hasty.rows() == patient.rows() == without(expected_rows(with_bad()), f"r{BAD}")


def test_lost_checkpoints_are_made_again_and_no_checkpoint_spans_what_is_done(small_run: MakeRun) -> None:
    """The second and the fourth of many are lost: only their records run again, each hole in a checkpoint of its own."""
    run = small_run(SEQUENCES, settings=settings(model=model(), checkpoint=checkpoints(every_records=7)))
    completed(run)
    before = run.manifest()
    lost = [before.checkpoints[1], before.checkpoints[3]]
    put_manifest(run.store, requeued(before, commit_id="repair", lost_keys=frozenset(entry.key for entry in lost)))

    worker = completed(run, checkpoint=checkpoints())

    again = [text for payloads, _ in worker.model.submitted for text in payloads]
    new = [entry for entry in run.manifest().checkpoints if entry.epoch == 3]
    assert again == [text for entry in lost for text in SEQUENCES[entry.first : entry.next]]
    assert [(entry.first, entry.next) for entry in new] == [(entry.first, entry.next) for entry in lost]
    assert run.reasons().count("gap") == 1
    assert run.rows() == expected_rows(SEQUENCES)


def test_records_that_cannot_be_read_are_quarantined_with_their_offset(small_run: MakeRun) -> None:
    """An empty record at the start, in the middle and at the end: found again in the file by offset."""
    sequences = ["" if number in {0, 17, 39} else text for number, text in enumerate(SEQUENCES)]
    run = small_run(sequences, settings=harmful())

    completed(run)

    text = run.source.read_bytes()
    assert run.quarantine() == dict.fromkeys(["r0", "r17", "r39"], "InvalidRecord")
    for entry in run.manifest().quarantined:
        assert text[entry.offset :].startswith(f">{entry.id}\n".encode())
    assert run.rows() == without(expected_rows(sequences), "r0", "r17", "r39")


@pytest.mark.parametrize(
    "parameters",
    [{}, {"harm": "raise"}, {"harm": "segfault"}, {"above_tokens": 40}],
    ids=["sound", "raise", "die", "memory"],
)
def test_records_that_cannot_be_read_do_not_cut_batches(small_run: MakeRun, parameters: dict[str, Any]) -> None:
    """One in three is empty, between the records of a batch that is sound, taken apart, or split: each has its one place."""
    empty = [number for number in range(40) if number % 3 == 1]
    sequences = ["" if number in empty else text for number, text in enumerate(with_bad(SEQUENCES, 12))]
    bad = [12] if "harm" in parameters else []
    few = checkpoints(every_records=5, emergency_seconds=1e6)
    run = small_run(sequences, settings=replace(harmful(**parameters), checkpoint=few))

    worker = completed(run)

    lengths = [len(payloads) for payloads, _ in worker.model.submitted]
    poison = {f"r{number}": "PoisonInput" for number in bad}
    assert run.quarantine() == {**dict.fromkeys((f"r{number}" for number in empty), "InvalidRecord"), **poison}
    assert run.rows() == without(expected_rows(sequences), *(f"r{number}" for number in [*empty, *bad]))
    assert run.manifest().done == difference(((0, 40),), from_ordinals([*empty, *bad]))
    assert max(lengths) >= 4


def test_a_shard_without_a_usable_record_is_complete(small_run: MakeRun) -> None:
    """All in quarantine, no checkpoint: every record is accounted for."""
    run = small_run(["", "", ""], settings=harmful())

    completed(run)

    assert len(run.quarantine()) == 3
    assert run.manifest().checkpoints == ()


def test_records_above_the_maximum_length_are_cut_and_named(small_run: MakeRun) -> None:
    """Their rows are those of the first letters; the checkpoint says which were cut."""
    run = small_run(SEQUENCES, settings=settings(model=replace(model(), max_length=10)))

    completed(run)

    (content,) = run.contents()
    long = [number for number, text in enumerate(SEQUENCES) if len(text) > 10]
    assert content["metadata"]["truncated"].tolist() == long
    assert run.rows() == expected_rows([text[:10] for text in SEQUENCES])


def test_the_flight_recorder_names_what_is_in_the_process(small_run: MakeRun) -> None:
    """Before each batch: shard, epoch, the first record with its offset and id, and the ordinal after the last."""
    run = small_run(SEQUENCES, settings=harmful())
    worker = run.worker()
    submit = worker.model.submit
    flights = []

    def noted(payloads: Any, **options: Any) -> None:
        flights.append((worker.recorder.flight, list(payloads)))
        submit(payloads, **options)

    worker.model.submit = noted

    worker.run()

    assert len(flights) > 5
    for flight, payloads in flights:
        assert (flight.shard, flight.epoch, flight.has_claimed) == (0, 1, True)
        assert SEQUENCES[flight.first : flight.next][-len(payloads) :] == payloads
        assert flight.first_id == f"r{flight.first}"
        assert run.source.read_bytes()[flight.first_offset :].startswith(f">r{flight.first}\n".encode())
    last = worker.recorder.flight
    assert (last.shard, last.first, last.has_committed) == (None, None, True)


def test_a_resumed_shard_makes_the_same_packs_and_so_the_same_bits(small_run: MakeRun) -> None:
    """ESM-2 (8M, random weights), drained after two batches and resumed: every row bit for bit as undisturbed."""
    esm2 = ModelSettings(name="esm2", source="random:7", parameters={"size": "8M"}, max_tokens_per_batch=100)
    sequences = proteins(24)
    undisturbed = small_run(sequences, name="undisturbed", settings=settings(model=esm2))
    disturbed = small_run(sequences, name="disturbed", settings=settings(model=esm2))
    first = disturbed.worker()
    outcomes = count(1)
    first.model.on_receive = lambda outcome: first.drain.set() if outcome and next(outcomes) == 2 else None

    completed(undisturbed)
    drained = first.run()
    num_done = len(disturbed.rows())
    completed(disturbed)

    assert drained is ExitCode.DRAINED
    assert 0 < num_done < len(sequences)
    assert disturbed.rows() == undisturbed.rows()
