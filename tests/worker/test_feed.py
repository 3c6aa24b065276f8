"""Reading ahead: everything in file order, damage in its turn, bounded memory, and a way out at any moment."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pytest

from contract.errors import InvalidInput
from contract.manifest import Quarantined, ShardManifest
from contract.names import QuarantineClass
from contract.store.errors import Unavailable
from contract.transitions import committed
from tests import make
from worker.batching import Batch, Skipped
from worker.feed import MAX_UNUSABLE_AT_FIRST, QUEUE_LENGTH, EndOfRange, Feed, Piece, ReadingFailed
from worker.models.protocol import Prepared, RecordTooLong, Unusable
from worker.records.record import Record


class Letters:
    """A preparer: one token a letter; `?` is unusable, more than 50 letters are too long, from 20 on they are cut."""

    def prepare(self, value: Any) -> Prepared:
        """See Preparer."""
        if "?" in value:
            raise Unusable("a question mark")
        if len(value) > 50:
            raise RecordTooLong(f"{len(value)} letters")
        return Prepared(payload=value[:20], num_tokens=len(value[:20]), is_truncated=len(value) > 20)


def record(ordinal: int, value: str | None = "AAAA") -> Record:
    """A record of ten bytes; None = one that the reader could not use."""
    return Record(
        ordinal=ordinal,
        offset=10 * ordinal,
        next_offset=10 * ordinal + 10,
        position=10 * ordinal + 10,
        id=f"r{ordinal}",
        value=value,
        problem="empty" if value is None else None,
    )


def feed_of(
    records: Iterable[Record], *, manifest: ShardManifest | None = None, token_budget: int = 10, first: int = 0
) -> Feed:
    """A feed over these records."""
    return Feed(
        iter(records),
        manifest=manifest or make.held(),
        preparer=Letters(),
        token_budget=token_budget,
        first_ordinal=first,
    )


def pieces_of(feed: Feed) -> list[Piece]:
    """All pieces up to the last one."""
    pieces: list[Piece] = []
    with feed:
        while not pieces or not isinstance(pieces[-1], EndOfRange | ReadingFailed):
            piece = feed.get(20.0)
            assert piece is not None, "the feed has dried up"
            pieces.append(piece)
    return pieces


def shape(pieces: Iterable[Piece]) -> list[Any]:
    """Ordinals of batches as lists, after those skipped with them; skipped records with their class; the end as a number."""
    found: list[Any] = []
    for piece in pieces:
        if isinstance(piece, Batch):
            found += [(one.item.ordinal, one.quarantine_class.value) for one in piece.skipped]
            found.append([one.ordinal for one in piece.items])
        elif isinstance(piece, Skipped):
            found.append((piece.item.ordinal, piece.quarantine_class.value))
        elif isinstance(piece, EndOfRange):
            found.append(piece.num_records)
        else:
            found.append(type(piece.error).__name__)
    return found


def test_records_come_packed_in_order_and_then_the_end() -> None:
    """Two records of four tokens a batch; the end says how many records there are."""
    assert shape(pieces_of(feed_of(record(number) for number in range(5)))) == [[0, 1], [2, 3], [4], 5]


def test_an_empty_range_is_only_an_end() -> None:
    """No record starts in it."""
    assert shape(pieces_of(feed_of([]))) == [0]


def test_a_record_is_prepared_and_keeps_its_identity() -> None:
    """Payload and cost are the preparer's; offset, id and position the reader's."""
    batch = pieces_of(feed_of([record(0, "C" * 30)]))[0]

    assert isinstance(batch, Batch)
    (one,) = batch.items
    assert (one.payload, one.num_tokens, one.is_truncated) == ("C" * 20, 20, True)
    assert (one.offset, one.next_offset, one.position, one.id) == (0, 10, 10, "r0")


INVALID, TOO_LONG = QuarantineClass.INVALID_RECORD.value, QuarantineClass.TOO_LONG.value


def test_records_that_no_model_sees_come_with_the_batch_around_them() -> None:
    """Refused by the reader, by the preparer, or too long: each with its class, and the batch is filled all the same."""
    records = [record(0), record(1, None), record(2, "?"), record(3, "A" * 51), record(4), record(5)]

    pieces = pieces_of(feed_of(records))

    assert shape(pieces) == [(1, INVALID), (2, INVALID), (3, TOO_LONG), [0, 4], [5], 6]
    assert isinstance(pieces[0], Batch)
    assert [one.detail for one in pieces[0].skipped] == ["empty", "a question mark", "51 letters"]
    assert [one.item.offset for one in pieces[0].skipped] == [10, 20, 30]


def test_records_that_no_model_sees_wait_for_no_batch_where_there_is_none() -> None:
    """At the start they come at once, one by one; at the end and before damage with the last batch."""
    at_start = [record(0, None), record(1, "?"), record(2)]
    at_end = [record(0), record(1, None)]

    assert shape(pieces_of(feed_of(at_start))) == [(0, INVALID), (1, INVALID), [2], 3]
    assert shape(pieces_of(feed_of(at_end))) == [(1, INVALID), [0], 2]
    assert shape(pieces_of(feed_of(chain(at_end, broken(0, InvalidInput("cut")))))) == [
        (1, INVALID),
        [0],
        "InvalidInput",
    ]


def test_a_long_run_of_refused_records_closes_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts do not pile up behind one batch: what is refused after so many comes by itself."""
    monkeypatch.setattr("worker.feed.MAX_SKIPPED", 2)
    records = [record(0), *(record(number, "?") for number in range(1, 4)), record(4)]

    assert shape(pieces_of(feed_of(records))) == [(1, INVALID), (2, INVALID), [0], (3, INVALID), [4], 5]


def test_settled_records_are_skipped_and_no_batch_spans_them() -> None:
    """Record 1 is done and 4 in quarantine: nothing of them comes, and batches end before them."""
    quarantined = Quarantined(ordinal=4, offset=40, id="r4", quarantine_class=QuarantineClass.NON_FINITE, detail="NaN")
    manifest = committed(make.with_checkpoint(make.held(), 1, 2), commit_id="q", quarantined=[quarantined])

    pieces = pieces_of(feed_of((record(number) for number in range(7)), manifest=manifest, token_budget=100))

    assert shape(pieces) == [[0], [2, 3], [5, 6], 7]


def test_a_resumed_range_counts_its_records_from_where_it_began() -> None:
    """First ordinal 5, two records read: the range has seven. Also when there is nothing left to read."""
    assert shape(pieces_of(feed_of([record(5), record(6)], first=5))) == [[5, 6], 7]
    assert shape(pieces_of(feed_of([], first=5))) == [5]


def broken(num_records: int, error: Exception) -> Iterator[Record]:
    """A reader that fails after so many records."""
    yield from (record(number) for number in range(num_records))
    raise error


@pytest.mark.parametrize("error", [InvalidInput("truncated"), Unavailable("in.fasta", "timed out")])
def test_damage_comes_after_every_record_before_it(error: Exception) -> None:
    """The batch under way is closed first: what is sound is done before anything fails."""
    pieces = pieces_of(feed_of(broken(3, error)))

    assert shape(pieces) == [[0, 1], [2], type(error).__name__]
    assert isinstance(pieces[-1], ReadingFailed)
    assert pieces[-1].error is error


def test_an_error_of_our_own_is_not_swallowed_either() -> None:
    """Whatever ends the thread reaches the session."""
    assert shape(pieces_of(feed_of(broken(0, ZeroDivisionError())))) == ["ZeroDivisionError"]


def test_a_range_that_begins_with_nothing_usable_was_not_meant_to_be_read_so() -> None:
    """A thousand unusable records and no good one: the input is refused, with what to look at."""
    pieces = pieces_of(feed_of(record(number, "?") for number in range(MAX_UNUSABLE_AT_FIRST)))

    assert isinstance(pieces[-1], ReadingFailed)
    assert isinstance(pieces[-1].error, InvalidInput)
    assert "none of the first 1000 records" in str(pieces[-1].error)
    assert "a question mark" in str(pieces[-1].error)


@pytest.mark.parametrize("has_usable", ["in this reading", "done before"])
def test_many_unusable_records_are_fine_once_one_was_usable(has_usable: str) -> None:
    """Also where the usable one was done by an earlier worker and this one resumes behind it."""
    first = 1
    manifest = make.with_checkpoint(make.held(), 0, 1) if has_usable == "done before" else make.held()
    bad = [record(number, "?") for number in range(first, first + MAX_UNUSABLE_AT_FIRST)]
    records = bad if has_usable == "done before" else [record(0), *bad]

    pieces = pieces_of(feed_of(records, manifest=manifest, first=first))

    assert isinstance(pieces[-1], EndOfRange)


def test_reading_ahead_is_bounded() -> None:
    """Nobody takes a piece: the reader stops after the queue, the batch in hand and the record that closed it."""
    num_read = 0
    is_full = threading.Event()

    def endless() -> Iterator[Record]:
        nonlocal num_read
        while True:
            num_read += 1
            if num_read == QUEUE_LENGTH + 2:
                is_full.set()
            yield record(num_read, "A" * 20)

    with feed_of(endless()) as feed:
        assert is_full.wait(20)
        feed._thread.join(0.2)
        seen = num_read

    assert seen == QUEUE_LENGTH + 2
    assert not feed._thread.is_alive()


def test_leaving_does_not_wait_for_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain must commit finished rows now; the thread ends by itself when its read returns."""
    monkeypatch.setattr("worker.feed._LEAVE_WAIT_S", 0.05)
    answers, is_reading = threading.Event(), threading.Event()

    def slow() -> Iterator[Record]:
        is_reading.set()
        answers.wait(20)
        yield record(0)

    with feed_of(slow()) as feed:
        assert is_reading.wait(20)
        assert feed.get(0.0) is None
    was_reading = feed._thread.is_alive()
    answers.set()
    feed._thread.join(20)

    assert was_reading
    assert not feed._thread.is_alive()


def test_leaving_ends_a_reader_that_only_skips() -> None:
    """Millions of settled records are no reason to go on after the feed was left."""
    manifest = make.with_checkpoint(make.held(), 0, 10**9)
    is_reading = threading.Event()

    def endless() -> Iterator[Record]:
        for number in range(10**9):
            is_reading.set()
            yield record(number)

    with feed_of(endless(), manifest=manifest) as feed:
        assert is_reading.wait(20)

    assert not feed._thread.is_alive()
