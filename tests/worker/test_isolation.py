"""Finding the records that a failed batch died of: a scripted process, every kind of failure, every order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ModelError, ModelProcessDied, NoProgress, OutOfMemory
from contract.names import QuarantineClass
from tests.worker.build import item, items
from worker.batching import Item
from worker.isolation import MAX_DEATHS_IN_A_ROW, MAX_REFUSED_AT_FIRST, Finished, Isolator, Piece, Refused
from worker.model_client import Died, Outcome, Rows
from worker.model_process import DidNotFit, Raised

DIED = Died(detail="the model process was killed by signal 11")
KILLED = Died(detail="the model process was killed by signal 9", was_killed=True)
HUNG = Died(detail="no batch finished for 1 s", did_hang=True)
EXHAUSTED = Died(detail="the model process was killed for the container's memory limit", did_exhaust_memory=True)
RAISED = Raised(detail="ValueError: no")
DID_NOT_FIT = DidNotFit(detail="out of memory")
NAN = "nan"
NAN_AND_RAISES = "nan, raises in fp32"
OVERFLOWS = "beyond the stored dtype"

HARMS = {
    "died": DIED,
    "killed": KILLED,
    "hung": HUNG,
    "exhausts memory": EXHAUSTED,
    "raised": RAISED,
    "does not fit": DID_NOT_FIT,
}
CLASSES = {
    "died": QuarantineClass.POISON_INPUT,
    "killed": QuarantineClass.POISON_INPUT,
    "hung": QuarantineClass.POISON_INPUT,
    "exhausts memory": QuarantineClass.OUT_OF_MEMORY,
    "raised": QuarantineClass.POISON_INPUT,
    "does not fit": QuarantineClass.OUT_OF_MEMORY,
    NAN: QuarantineClass.NON_FINITE,
    NAN_AND_RAISES: QuarantineClass.NON_FINITE,
    OVERFLOWS: QuarantineClass.NON_FINITE,
}


def good(records: Iterable[Item]) -> Rows:
    """Row of record n: (n, n + 0.5)."""
    return Rows(values=torch.tensor([[float(one.ordinal), one.ordinal + 0.5] for one in records]), splits=None)


@dataclass
class Script:
    """A model process in which the records of `harms` do harm, as often as they are met (or `times`, then no more)."""

    harms: dict[int, str] = field(default_factory=dict)
    times: int = 10**6
    runs: list[list[int]] = field(default_factory=list)
    num_deaths: int = 0

    def outcome(self, records: Sequence[Item], *, is_fp32: bool = False) -> Outcome:
        """What becomes of a batch: the first record that does harm decides."""
        for one in records:
            harm = self.harms.get(one.ordinal)
            if harm in HARMS and self.times > 0:
                self.times -= 1
                self.num_deaths += isinstance(HARMS[harm], Died)
                return HARMS[harm]
        rows = good(records)
        for position, one in enumerate(records):
            harm = self.harms.get(one.ordinal)
            if harm == NAN_AND_RAISES and is_fp32:
                return RAISED
            if harm in {NAN, NAN_AND_RAISES} or (harm == OVERFLOWS and not is_fp32):
                rows.values[position] = float("nan")
            elif harm == OVERFLOWS:
                rows.values[position] = 1e6
        return rows

    def run(self, records: tuple[Item, ...], *, is_fp32: bool = False) -> Outcome:
        """The seam of the Isolator."""
        self.runs.append([one.ordinal for one in records])
        return self.outcome(records, is_fp32=is_fp32)


def isolator(script: Script, *, has_worked: bool = True, dtype: torch.dtype = torch.float32) -> Isolator:
    """An isolator over the script."""
    return Isolator(script.run, dtype=dtype, has_worked=has_worked)


def resolved(script: Script, *batches: tuple[Item, ...], **options) -> list[Piece]:
    """All pieces of these batches and of the end of the range."""
    one = isolator(script, **options)
    pieces = [piece for batch in batches for piece in one.resolve(batch, script.outcome(batch))]
    return [*pieces, *one.waiting()]


def finished(pieces: Iterable[Piece]) -> list[int]:
    """Ordinals with rows, in the order of the pieces; the rows must be theirs."""
    ordinals = []
    for piece in pieces:
        if isinstance(piece, Finished):
            assert torch.equal(piece.rows.values.float(), good(piece.items).values), piece
            ordinals += [one.ordinal for one in piece.items]
    return ordinals


def refused(pieces: Iterable[Piece]) -> dict[int, QuarantineClass]:
    """Class of each refused ordinal."""
    return {piece.item.ordinal: piece.quarantine_class for piece in pieces if isinstance(piece, Refused)}


def test_a_record_that_needs_more_memory_is_left_to_a_larger_worker() -> None:
    """It is not quarantined while one can be had; what was finished before it is not lost."""
    script, pieces = Script({3: "exhausts memory"}), []
    one = Isolator(script.run, dtype=torch.float32, has_worked=True, is_larger_to_be_had=True)
    batch = items(range(8))

    with pytest.raises(OutOfMemory, match=r"record 3 alone at offset .*: .* container's memory limit"):
        pieces.extend(one.resolve(batch, script.outcome(batch)))

    assert finished(pieces) == [0, 1, 2]
    assert refused(pieces) == {}


def test_a_sound_batch_is_one_piece_and_costs_nothing() -> None:
    """Rows that are finite pass as they are."""
    script = Script()

    pieces = resolved(script, items(range(8)))

    assert finished(pieces) == list(range(8))
    assert (len(pieces), script.runs) == (1, [])


def test_a_batch_that_dies_once_is_run_again_and_fine() -> None:
    """One stray death blames nobody."""
    script = Script({3: "died"}, times=1)

    pieces = resolved(script, items(range(8)))

    assert finished(pieces) == list(range(8))
    assert script.runs == [list(range(8))]


def test_one_record_that_kills_is_refused_after_four_deaths_and_nothing_else() -> None:
    """In company, alone, and twice as a single record, in a batch of 128: four deaths in all."""
    script = Script({77: "died"})

    pieces = resolved(script, items(range(128)))

    assert refused(pieces) == {77: QuarantineClass.POISON_INPUT}
    assert finished(pieces) == [number for number in range(128) if number != 77]
    assert script.num_deaths == 4


def test_a_verdict_that_cost_restarts_says_so() -> None:
    """It must be committed at once; one that a raising model led to need not."""
    costly = [piece for piece in resolved(Script({1: "died"}), items(range(3))) if isinstance(piece, Refused)]
    cheap = [piece for piece in resolved(Script({1: "raised"}), items(range(3))) if isinstance(piece, Refused)]

    assert [piece.is_costly for piece in costly] == [True]
    assert [piece.is_costly for piece in cheap] == [False]
    assert costly[0].detail == DIED.detail


def test_sigkill_needs_three_deaths_alone() -> None:
    """Somebody else may have sent it: the record gets one more chance."""
    script = Script({0: "killed"})

    pieces = list(isolator(script).resolve(items([0]), KILLED, was_alone=True))

    assert script.runs == [[0], [0]]
    assert pieces == []


def test_a_record_that_dies_alone_once_and_then_works_is_kept() -> None:
    """Second chances are real."""
    script = Script({5: "died"}, times=3)

    pieces = resolved(script, items(range(8)))

    assert refused(pieces) == {}
    assert sorted(finished(pieces)) == list(range(8))


def test_a_single_record_is_not_blamed_for_the_batch_beside_it() -> None:
    """A death in company does not count: the innocent neighbour runs again alone, fails once there, and is still kept."""
    script = Script({9: "died"}, times=1)

    pieces = list(isolator(script).resolve(items([9]), DIED))

    assert script.runs == [[9], [9]]
    assert finished(pieces) == [9]


def test_a_suspect_batch_that_died_alone_goes_to_single_records_at_once() -> None:
    """Nothing was beside it: running it as a whole again would only cost another restart."""
    script = Script({2: "died"})

    pieces = list(isolator(script).resolve(items(range(4)), DIED, was_alone=True))

    assert script.runs == [[0], [1], [2], [2], [3]]
    assert refused(pieces) == {2: QuarantineClass.POISON_INPUT}


def test_a_batch_that_raises_is_halved_down_to_the_record() -> None:
    """The process lives on, so halving is cheap: 2 log2(n) runs, and one more to be sure."""
    script = Script({11: "raised"})

    pieces = resolved(script, items(range(16)))

    assert refused(pieces) == {11: QuarantineClass.POISON_INPUT}
    assert finished(pieces) == [number for number in range(16) if number != 11]
    assert len(script.runs) == 2 * 4 + 1


@pytest.mark.parametrize("failure", [DID_NOT_FIT, EXHAUSTED], ids=["of the device", "of the container"])
def test_a_batch_beyond_the_memory_is_halved_and_the_budget_remembered(failure: Outcome) -> None:
    """Above 40 tokens nothing fits: halves of 32 do, and 32 is what is remembered."""

    def run(records: tuple[Item, ...], *, is_fp32: bool = False) -> Outcome:
        return failure if sum(one.num_tokens for one in records) > 40 else good(records)

    one = Isolator(run, dtype=torch.float32)
    batch = items(range(16), tokens=8)

    pieces = list(one.resolve(batch, failure))

    assert finished(pieces) == list(range(16))
    assert one.fitting_tokens == 32


def test_a_record_that_does_not_fit_alone_is_refused() -> None:
    """Its class is OutOfMemory, and the detail says how large it is."""
    pieces = resolved(Script({1: "does not fit"}), (item(0), item(1, tokens=5000), item(2)))

    verdicts = [piece for piece in pieces if isinstance(piece, Refused)]
    assert refused(pieces) == {1: QuarantineClass.OUT_OF_MEMORY}
    assert "5000 tokens do not fit alone" in verdicts[0].detail
    assert finished(pieces) == [0, 2]


def test_rows_that_are_finite_in_fp32_replace_those_that_were_not() -> None:
    """The second look is kept in the stored dtype."""
    script = Script({2: OVERFLOWS})
    batch = items(range(4))

    pieces = list(isolator(script).resolve(batch, script.outcome(batch)))

    kept = [piece for piece in pieces if isinstance(piece, Finished)]
    assert [[one.ordinal for one in piece.items] for piece in kept] == [[0, 1], [2], [3]]
    assert kept[1].rows.values.tolist() == [[1e6, 1e6]]


def test_rows_that_are_not_finite_in_fp32_either_are_refused() -> None:
    """NaN twice is NonFinite; the neighbours keep the rows they had."""
    script = Script({2: NAN})

    pieces = resolved(script, items(range(4)))

    assert refused(pieces) == {2: QuarantineClass.NON_FINITE}
    assert finished(pieces) == [0, 1, 3]
    assert script.runs == [[2]]


def test_a_row_beyond_the_stored_dtype_is_refused_with_the_remedy() -> None:
    """1e6 is no float16: the detail says what to set."""
    pieces = resolved(Script({0: OVERFLOWS}), items(range(2)), dtype=torch.float16)

    verdicts = [piece for piece in pieces if isinstance(piece, Refused)]
    assert refused(pieces) == {0: QuarantineClass.NON_FINITE}
    assert "set output.dtype to float32 or bfloat16" in verdicts[0].detail


def test_a_second_look_that_fails_is_an_answer_too() -> None:
    """NaN, and fp32 raises: refused as NonFinite after the strikes, not tried for ever."""
    script = Script({1: NAN_AND_RAISES})

    pieces = resolved(script, items(range(3)))

    assert refused(pieces) == {1: QuarantineClass.NON_FINITE}
    assert script.runs == [[1], [1]]


def test_a_second_look_that_dies_once_is_repeated_and_kept_in_the_stored_dtype() -> None:
    """NaN in float16, then a death, then finite rows in fp32: stored as float16."""
    answers: list[Outcome] = [DIED, Rows(values=torch.ones(1, 2), splits=None)]
    looks: list[bool] = []

    def run(_: tuple[Item, ...], *, is_fp32: bool = False) -> Outcome:
        looks.append(is_fp32)
        return answers.pop(0)

    one = Isolator(run, dtype=torch.float16)

    (piece,) = one.resolve(items([0]), Rows(values=torch.full((1, 2), torch.nan, dtype=torch.float16), splits=None))

    assert looks == [True, True]
    assert isinstance(piece, Finished)
    assert piece.rows.values.dtype is torch.float16


def test_rows_of_a_batch_that_was_not_sound_are_no_views() -> None:
    """torch.save writes a view's whole storage: the refused rows would be in the file."""
    pieces = resolved(Script({2: NAN}), items(range(4)))

    rows = [piece.rows.values for piece in pieces if isinstance(piece, Finished)]
    assert [values.untyped_storage().nbytes() for values in rows] == [values.nbytes for values in rows]


def test_per_token_rows_keep_their_splits_when_one_record_is_refused() -> None:
    """Records of 2, 1 and 3 rows, the second NaN: the others keep theirs."""
    values = torch.arange(12.0).reshape(6, 2)
    values[2] = float("nan")
    batch = items(range(3))
    one = Isolator(lambda *_, **__: Rows(values=values[2:3], splits=(1,)), dtype=torch.float32)

    pieces = list(one.resolve(batch, Rows(values=values, splits=(2, 1, 3))))

    kept = [(piece.rows.splits, piece.rows.values.tolist()) for piece in pieces if isinstance(piece, Finished)]
    assert kept == [((2,), values[:2].tolist()), ((3,), values[3:].tolist())]
    assert refused(pieces) == {1: QuarantineClass.NON_FINITE}


@pytest.mark.parametrize(
    "rows",
    [
        Rows(values=torch.zeros(2, 3), splits=None),
        Rows(values=torch.zeros(3), splits=None),
        Rows(values=torch.zeros(6, 2), splits=(3, 3)),
        Rows(values=torch.zeros(5, 2), splits=(2, 2, 2)),
    ],
    ids=["too few", "not 2-D", "too few splits", "splits do not add up"],
)
def test_rows_that_do_not_match_the_batch_stop_the_worker(rows: Rows) -> None:
    """Rows that cannot be assigned to records are never guessed at."""
    with pytest.raises(ModelError, match="must return one row for each record"):
        list(isolator(Script()).resolve(items(range(3)), rows))


def test_adjacent_records_that_kill_are_all_found() -> None:
    """Three in a row, each costs its two deaths alone; the batch as a whole costs two."""
    script = Script({3: "died", 4: "died", 5: "died"})

    pieces = resolved(script, items(range(8)))

    assert set(refused(pieces)) == {3, 4, 5}
    assert finished(pieces) == [0, 1, 2, 6, 7]
    assert script.num_deaths == 2 + 3 * 2


@pytest.mark.parametrize(
    ("harm", "error"), [("died", ModelProcessDied), ("hung", NoProgress), ("exhausts memory", OutOfMemory)]
)
def test_a_process_that_fails_on_everything_blames_no_record(harm: str, error: type[Exception]) -> None:
    """After three records in a row it is not the records: the worker ends, and no verdict has left the isolator."""
    script = Script(dict.fromkeys(range(20), harm))
    pieces: list[Piece] = []

    with pytest.raises(error, match=f"each of {MAX_DEATHS_IN_A_ROW + 1} records in a row"):
        pieces.extend(isolator(script).resolve(items(range(20)), script.outcome(items(range(20)))))
    assert pieces == []


@pytest.mark.parametrize(("harm", "error"), [("raised", ModelError), ("does not fit", OutOfMemory)])
def test_a_model_that_has_never_worked_blames_no_record(harm: str, error: type[Exception]) -> None:
    """Eight records in a row, and no row ever: the worker ends, and no verdict has left the isolator."""
    script = Script(dict.fromkeys(range(20), harm))
    batch = items(range(20))
    pieces: list[Piece] = []

    with pytest.raises(error, match=f"each of the first {MAX_REFUSED_AT_FIRST + 1} records failed"):
        pieces.extend(isolator(script, has_worked=False).resolve(batch, script.outcome(batch)))
    assert pieces == []


def test_a_model_that_has_worked_may_raise_on_many_records_in_a_row() -> None:
    """A stretch of bad records is the records' fault once the model is known to work."""
    script = Script(dict.fromkeys(range(20), "raised"))

    pieces = resolved(script, items(range(21)))

    assert set(refused(pieces)) == set(range(20))
    assert finished(pieces) == [20]


def test_a_verdict_waits_for_the_next_success_and_comes_before_it() -> None:
    """The batch of a killing record gives nothing; the next batch gives the verdict first, then its own rows."""
    script = Script({0: "died"})
    one = isolator(script)

    first = list(one.resolve(items([0]), DIED))
    second = list(one.resolve(items([1]), good(items([1]))))

    assert first == []
    assert (refused(second[:1]), finished(second[1:])) == ({0: QuarantineClass.POISON_INPUT}, [1])


def test_a_success_between_deaths_starts_the_count_again() -> None:
    """Many killing records, never more than three in a row: all are found."""
    bad = [number for number in range(24) if number % 4]
    script = Script(dict.fromkeys(bad, "died"))

    pieces = resolved(script, items(range(24)))

    assert sorted(refused(pieces)) == bad


@st.composite
def harmed(draw: Callable) -> tuple[int, dict[int, str]]:
    """A number of records, and harms for some; of those that cost a death never more than three in a row."""
    size = draw(st.integers(1, 40))
    kinds = sorted(CLASSES)
    harms: dict[int, str] = {}
    in_a_row = 0
    for number in range(size):
        harm = draw(st.one_of(st.none(), st.none(), st.sampled_from(kinds)))
        is_death = harm in {"died", "killed", "hung", "exhausts memory"}
        if harm is None or (is_death and in_a_row == MAX_DEATHS_IN_A_ROW):
            in_a_row = 0
            continue
        in_a_row += is_death
        harms[number] = harm
    return size, harms


@given(harmed(), st.integers(1, 16))
def test_exactly_the_bad_records_are_refused_whatever_they_are(case: tuple[int, dict[int, str]], width: int) -> None:
    """Random harms in random batches: each gets its class, all others their own rows, everything in file order."""
    size, harms = case
    batches = [items(range(start, min(start + width, size))) for start in range(0, size, width)]

    pieces = resolved(Script(harms), *batches, dtype=torch.float16)

    assert refused(pieces) == {number: CLASSES[harm] for number, harm in harms.items()}
    assert finished(pieces) == [number for number in range(size) if number not in harms]
    order = [one.ordinal for piece in pieces for one in (piece.items if isinstance(piece, Finished) else (piece.item,))]
    assert order == sorted(order)
