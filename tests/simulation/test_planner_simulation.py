"""The planner against a miniature cluster: random deaths, late looks, a crashing controller, and still every record once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from contract.names import FailureClass
from controller import failure_policy, planner
from controller.failure_policy import Charge
from controller.judgement import the_dead
from tests.simulation.world import FREE_CAUSES, MAX_TICKS, World

SEEDS = range(200)


def _simulated(seed: int) -> World:
    world = World(seed)
    while not world.is_over:
        assert world.ticks < MAX_TICKS, f"no end in sight: {world.status}"
        world.step()
    return world


def _all_simulated(seeds: range) -> list[World]:
    return [_simulated(seed) for seed in seeds]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_run_converges_with_each_record_once(seed: int) -> None:
    """Whatever dies, and whenever, the run ends complete: good records in one checkpoint, bad ones in quarantine.

    The world checks at every change that invariants hold, that epochs have one committer, that no free death counts,
    that no live worker loses its shard, and that no good record is quarantined.
    """
    world = _simulated(seed)

    world.verify()


def test_the_simulation_is_rough_enough() -> None:
    """Over some seeds every kind of death occurs, controllers crash, and poison and memory shortage are met."""
    worlds = _all_simulated(range(30))

    causes = Counter(cause for world in worlds for cause in world.causes.values())
    assert {"drained", "evicted", "nodeGone", "deleted", "killed", "exit1", "exit75", "gpu", "oom", "poison"} <= set(
        causes
    )
    assert {"fenced", "rejected", "done"} <= set(causes)
    assert sum(world.num_crashes for world in worlds) > 100
    assert sum(causes[cause] for cause in FREE_CAUSES) > 300


def test_charging_evictions_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure policy that lets evictions count does not pass the simulation."""
    monkeypatch.setattr(failure_policy, "FREE", failure_policy.FREE - {FailureClass.SPOT_EVICTION})
    monkeypatch.setitem(failure_policy.CHARGES, FailureClass.SPOT_EVICTION, Charge.SHARD)

    with pytest.raises(AssertionError, match="evicted was charged"):
        _all_simulated(range(20))


def test_releasing_the_shards_of_the_living_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that trusts an old listing takes shards from workers that live, and the world sees it."""
    monkeypatch.setattr(planner, "the_dead", lambda observed: the_dead(replace(observed, is_complete=True)))

    with pytest.raises(AssertionError, match="released alive"):
        _all_simulated(range(20))
