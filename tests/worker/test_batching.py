"""Packing: next-fit in file order, the same packs from any pack boundary on."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.names import QuarantineClass
from tests.worker.build import item, items
from worker.batching import Batch, Item, Packer, Skipped, halves, repacked

SIZES = st.lists(st.integers(1, 40), max_size=60)
BUDGETS = st.integers(1, 50)


def packed(records: list[Item], budget: int) -> list[Batch]:
    """All batches of a list of adjacent records."""
    packer = Packer(budget)
    batches = [closed for record in records if (closed := packer.add(record)) is not None]
    last = packer.flush()
    return [*batches, last] if last is not None else batches


def ordinals(batches: list[Batch] | tuple[Batch, ...]) -> list[list[int]]:
    """Which records are in which batch."""
    return [[member.ordinal for member in batch.items] for batch in batches]


@given(SIZES, BUDGETS)
def test_packs_hold_every_record_once_and_in_order(sizes: list[int], budget: int) -> None:
    """The packs laid end to end are the input."""
    records = [item(number, tokens=size) for number, size in enumerate(sizes)]

    batches = packed(records, budget)

    assert [member for batch in batches for member in batch.items] == records


@given(SIZES, BUDGETS)
def test_no_pack_exceeds_the_budget_unless_it_is_a_single_record(sizes: list[int], budget: int) -> None:
    """Above the budget there is only a record that is larger than it, alone."""
    batches = packed([item(number, tokens=size) for number, size in enumerate(sizes)], budget)

    assert all(batch.num_tokens <= budget or len(batch.items) == 1 for batch in batches)


@given(SIZES, BUDGETS)
def test_next_fit_closes_no_pack_that_had_room(sizes: list[int], budget: int) -> None:
    """The first record of each pack would not have fitted into the one before."""
    batches = packed([item(number, tokens=size) for number, size in enumerate(sizes)], budget)

    assert all(before.num_tokens + after.items[0].num_tokens > budget for before, after in itertools.pairwise(batches))


@given(SIZES, BUDGETS, st.data())
def test_packing_from_any_pack_boundary_gives_the_same_packs(
    sizes: list[int], budget: int, data: st.DataObject
) -> None:
    """A resume at a pack boundary meets the packs of the undisturbed run."""
    records = [item(number, tokens=size) for number, size in enumerate(sizes)]
    batches = packed(records, budget)
    boundary = data.draw(st.integers(0, len(batches)))
    num_before = sum(len(batch.items) for batch in batches[:boundary])

    resumed = packed(records[num_before:], budget)

    assert resumed == batches[boundary:]


def test_a_repacked_batch_keeps_its_verdicts_with_the_first_part() -> None:
    """They are settled before any of its rows, whatever the parts become."""
    skipped = (Skipped(item(3), QuarantineClass.TOO_LONG, "60 letters"),)

    parts = repacked(Batch(items=items([1, 2, 4], tokens=10), skipped=skipped), 20)

    assert [part.skipped for part in parts] == [skipped, ()]


def test_a_pack_never_spans_a_settled_record() -> None:
    """A gap before a record closes the batch, though there is room."""
    packer = Packer(100)
    packer.add(item(0))

    closed = packer.add(item(2), is_adjacent=False)

    assert closed == Batch(items=(item(0),))
    assert packer.flush() == Batch(items=(item(2),))


def test_a_gap_before_the_first_record_closes_nothing() -> None:
    """There is no empty batch."""
    packer = Packer(100)

    assert packer.add(item(7), is_adjacent=False) is None
    assert packer.flush() == Batch(items=(item(7),))
    assert packer.flush() is None


def test_records_once_struck_share_suspect_batches_of_their_own() -> None:
    """One strike: with others of one strike, apart from the innocent, marked suspect."""
    packer = Packer(100)
    strikes = [0, 1, 1, 0]

    batches = [closed for number, count in enumerate(strikes) if (closed := packer.add(item(number), strikes=count))]
    batches.append(packer.flush())

    assert ordinals(batches) == [[0], [1, 2], [3]]
    assert [batch.is_suspect for batch in batches] == [False, True, False]


def test_records_struck_twice_run_alone() -> None:
    """From two strikes on, each record is a batch."""
    packer = Packer(100)
    strikes = [2, 2, 3]

    batches = [closed for number, count in enumerate(strikes) if (closed := packer.add(item(number), strikes=count))]
    batches.append(packer.flush())

    assert ordinals(batches) == [[0], [1], [2]]
    assert all(batch.is_suspect for batch in batches)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_must_be_positive(budget: int) -> None:
    """A budget that nothing fits is refused."""
    with pytest.raises(ValueError, match="token_budget must be positive"):
        Packer(budget)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=40))
def test_halves_are_two_runs_of_nearly_equal_tokens(sizes: list[int]) -> None:
    """Neither is empty, order is kept, and moving the border by one record would not help."""
    records = tuple(item(number, tokens=size) for number, size in enumerate(sizes))

    left, right = halves(records)

    def tokens(part: tuple[Item, ...]) -> int:
        return sum(member.num_tokens for member in part)

    assert left + right == records
    assert left
    assert right
    assert tokens(left) - left[-1].num_tokens < tokens(records) / 2
    assert tokens(left) * 2 >= tokens(records) or len(right) == 1


@pytest.mark.parametrize("records", [(), items([0])], ids=["none", "one"])
def test_less_than_two_records_cannot_be_halved(records: tuple[Item, ...]) -> None:
    """The caller must have dealt with a single record before."""
    with pytest.raises(ValueError, match="cannot be halved"):
        halves(records)


@given(SIZES.filter(bool), BUDGETS, st.booleans())
def test_repacking_keeps_order_and_suspicion(sizes: list[int], budget: int, is_suspect: bool) -> None:  # noqa: FBT001
    """A smaller budget cuts the batch by next-fit and changes nothing else."""
    records = [item(number, tokens=size) for number, size in enumerate(sizes)]

    parts = repacked(Batch(items=tuple(records), is_suspect=is_suspect), budget)

    assert ordinals(parts) == ordinals(packed(records, budget))
    assert all(part.is_suspect is is_suspect for part in parts)


def test_a_batch_tells_its_range_tokens_and_payloads() -> None:
    """What the flight recorder and the model process get of it."""
    batch = Batch(items=(item(3, tokens=5, payload="a"), item(5, tokens=7, payload="b")))

    assert (batch.first, batch.next, batch.num_tokens, batch.payloads) == (3, 6, 12, ("a", "b"))
