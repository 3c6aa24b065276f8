"""Ranges behave as the sets of ordinals they stand for."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from contract.ranges import (
    Range,
    Ranges,
    contains,
    count,
    difference,
    from_ordinals,
    intersection,
    normalised,
    union,
)

pairs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)
range_sets = pairs.map(normalised)


def members(ranges: list[Range] | Ranges) -> set[int]:
    """The ordinals that the ranges stand for, one by one."""
    return {ordinal for start, end in ranges for ordinal in range(start, end)}


@given(pairs)
def test_normalised_keeps_the_set_and_is_canonical(raw: list[Range]) -> None:
    """Sorted, disjoint, with a gap between neighbours, never empty; the set of ordinals is unchanged."""
    ranges = normalised(raw)

    assert members(ranges) == members(raw)
    assert all(start < end for start, end in ranges)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(ranges))
    assert normalised(ranges) == ranges


@given(range_sets, range_sets)
def test_operations_are_those_of_sets(left: Ranges, right: Ranges) -> None:
    """Union, difference, intersection and count agree with Python's sets, and results are canonical."""
    results = {
        "union": (union(left, right), members(left) | members(right)),
        "difference": (difference(left, right), members(left) - members(right)),
        "intersection": (intersection(left, right), members(left) & members(right)),
    }

    for name, (ranges, expected) in results.items():
        assert members(ranges) == expected, name
        assert normalised(ranges) == ranges, name
        assert count(ranges) == len(expected), name


@given(range_sets, st.integers(-1, 31))
def test_contains_is_membership(ranges: Ranges, ordinal: int) -> None:
    """An ordinal is in the ranges exactly if it is in the set."""
    assert contains(ranges, ordinal) == (ordinal in members(ranges))


@given(st.sets(st.integers(0, 30)))
def test_from_ordinals_round_trips(ordinals: set[int]) -> None:
    """Single ordinals in any order give the set back."""
    assert members(from_ordinals(iter(ordinals))) == ordinals
