"""controller.checkpoint_interval: between what evictions cost and what checkpoints cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.api import PROFILES, Profile
from controller.checkpoint_interval import MIN_COST_S, CheckpointCost, interval_s, measured_cost
from tests import make
from tests.make import later

SPOT = PROFILES[Profile.SPOT]


@pytest.mark.parametrize(
    ("evictions_per_hour", "stall_s", "expected_s"),
    [(0.5, 0.05, 27), (4, 0.05, 10), (0.5, 0.02, 17), (0.125, 0.05, 54), (0.5, 0.5, 60), (60, 0.05, 10)],
)
def test_youngs_interval_within_bounds(evictions_per_hour: float, stall_s: float, expected_s: float) -> None:
    """Figures worked out by hand; 10 s at least, half of the emergency threshold at most."""
    found = interval_s(SPOT, evictions_per_hour=evictions_per_hour, cost=CheckpointCost(stall_s=stall_s))

    assert found == expected_s


def test_a_slow_store_is_given_time() -> None:
    """An upload of 15 s every 30 s is half of the time; oftener, they would meet."""
    assert interval_s(SPOT, evictions_per_hour=4, cost=CheckpointCost(write_s=15)) == 30


def test_the_emergency_threshold_is_the_users() -> None:
    """The interval keeps below half of it, even below its own lower bound."""
    settings = replace(SPOT, emergency_seconds=8)

    assert interval_s(settings, evictions_per_hour=0.5, cost=CheckpointCost()) == 4


@given(st.floats(1e-6, 1e6), st.floats(0, 1e4), st.floats(0, 1e4), st.floats(1e-3, 1e5))
def test_any_figures_give_an_interval(rate: float, stall_s: float, write_s: float, emergency_s: float) -> None:
    """At least a second, at most two minutes, and below the emergency threshold where that leaves a second."""
    settings = replace(SPOT, emergency_seconds=emergency_s)
    found = interval_s(settings, evictions_per_hour=rate, cost=CheckpointCost(stall_s=stall_s, write_s=write_s))

    assert 1 <= found <= 120
    assert found == 1 or found < emergency_s


def test_the_cost_is_that_of_the_latest_checkpoints() -> None:
    """Of all shards; before the first one it is what serialising costs."""
    old = make.with_checkpoint(make.held(0), 0, 1)
    old = replace(old, checkpoints=(replace(old.checkpoints[0], write_seconds=900),))
    new = make.held(1)
    for number in range(20):
        new = make.with_checkpoint(new, number, number + 1, at=later(60 + number))
    new = replace(new, checkpoints=tuple(replace(item, write_seconds=2, stall_seconds=1) for item in new.checkpoints))

    assert measured_cost([]) == CheckpointCost(stall_s=MIN_COST_S, write_s=0)
    assert measured_cost([new]) == CheckpointCost(stall_s=1 + MIN_COST_S, write_s=2)
    assert measured_cost([old, *(replace(new, shard=shard) for shard in range(1, 9))]).write_s == 2
