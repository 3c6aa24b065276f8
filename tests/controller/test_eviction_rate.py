"""controller.eviction_rate: evictions for each hour of a worker."""

from __future__ import annotations

import pytest

from controller.eviction_rate import EvictionRate, with_eviction, with_time
from tests.make import NOW, later


def test_nothing_seen_is_one_in_two_hours() -> None:
    """What traces of spot GPUs show on average."""
    assert EvictionRate().per_hour == 0.5


def test_time_without_evictions_lowers_it() -> None:
    """Ten workers for an hour are ten hours; the first look starts the clock."""
    first = with_time(EvictionRate(), num_workers=10, now=NOW)
    rate = with_time(first, num_workers=10, now=later(3600))

    assert first.worker_hours == 0
    assert rate.per_hour == pytest.approx(1 / 12)


def test_evictions_raise_it_and_fade() -> None:
    """Half of it is forgotten in two hours, with nobody exposed."""
    rate = EvictionRate(as_of=NOW)
    for _ in range(9):
        rate = with_eviction(rate)
    faded = with_time(rate, num_workers=0, now=later(7200))

    assert rate.per_hour == 5
    assert faded.per_hour == pytest.approx((4.5 + 1) / 2)


def test_a_clock_that_goes_back_adds_nothing() -> None:
    """Another controller's clock may be behind."""
    rate = with_time(EvictionRate(as_of=later(60), evictions=1), num_workers=5, now=NOW)

    assert (rate.evictions, rate.worker_hours) == (1, 0)
