"""The planner against a miniature cluster: random deaths, late looks, a crashing controller, and still every record once.

The world checks at every change and every look what is promised: no record committed twice or lost (P1, P2), one committer
an epoch (P3), bounded failures and starts (P4), success only where all shards are complete (P5), and all that beside a
controller that crashes between any two actions, forgets, sees late, and acts twice (P6). Mutations show that it would see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from contract.manifest import ShardManifest
from contract.names import FailureClass, Phase
from controller import consequences, failure_policy, judgement, planner
from controller.failure_policy import Charge, Verdict, classify
from controller.judgement import the_dead
from controller.observed import Evidence
from tests.simulation.world import FREE_CAUSES, MAX_TICKS, World

SEEDS = range(200)
MORE_SEEDS = [range(first, first + 100) for first in range(200, 1000, 100)]
MUTATION_SEEDS = range(40)


def _simulated(seed: int, *, is_hopeless: bool = False) -> World:
    world = World(seed, is_hopeless=is_hopeless)
    while not world.is_over:
        assert world.ticks < MAX_TICKS, f"no end in sight: {world.status}"
        world.step()
    return world


def _all_simulated(seeds: Iterable[int]) -> list[World]:
    worlds = []
    for seed in seeds:
        worlds.append(_simulated(seed))
        worlds[-1].verify()
    return worlds


@pytest.mark.parametrize("seed", SEEDS)
def test_every_run_converges_with_each_record_once(seed: int) -> None:
    """Whatever dies, and whenever, the run ends complete: good records in one checkpoint, bad ones in quarantine."""
    world = _simulated(seed)

    world.verify()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", MORE_SEEDS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_more_runs_converge_with_each_record_once(seeds: range) -> None:
    """A thousand in all."""
    assert len(_all_simulated(seeds)) == 100


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_cannot_work_costs_few_workers(seed: int) -> None:
    """Refused before they claim anything, workers are started once, then one by one as probes, until the run fails."""
    world = _simulated(seed, is_hopeless=True)
    max_openings = world.run.spec.failure_policy.run_breaker.max_openings
    counted = [cause for cause in world.causes.values() if cause not in FREE_CAUSES]

    assert world.status.phase is Phase.FAILED
    # A listing that lacks the probe may start another beside it.
    assert max_openings < len(counted) <= world.num_workers + 2 * max_openings


_RARE = {FailureClass.CRASH_LOOP, FailureClass.DONE}
"""Three equal deaths within ten minutes without a commit; and an end that is no restart."""


def test_the_simulation_is_rough_enough() -> None:
    """Over some seeds every kind of death occurs, controllers crash and act twice, and poison and shortage are met."""
    worlds = [_simulated(seed) for seed in range(30)]

    causes = Counter(cause for world in worlds for cause in world.causes.values())
    assert {"drained", "evicted", "nodeGone", "deleted", "killed", "exit1", "exit75", "gpu", "oom", "poison"} <= set(
        causes
    )
    assert {"fenced", "rejected", "done", "disk", "exit0", "refused", "pull"} <= set(causes)
    classes = {name for world in worlds for name in world.status.restarts.by_class}
    assert classes >= {kind.value for kind in FailureClass if kind not in _RARE}
    assert sum(world.num_crashes for world in worlds) > 100
    assert sum(world.num_replays for world in worlds) > 100
    assert sum(causes[cause] for cause in FREE_CAUSES) > 300


# Mutations: each is a mistake that the simulation must see.


def _charges_evictions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(failure_policy, "FREE", failure_policy.FREE - {FailureClass.SPOT_EVICTION})
    patch.setitem(failure_policy.CHARGES, FailureClass.SPOT_EVICTION, Charge.SHARD)


def _trusts_an_old_listing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planner, "the_dead", lambda observed: the_dead(replace(observed, is_complete=True)))


def _takes_exit_0_for_success(patch: pytest.MonkeyPatch) -> None:
    def credulous(seen: Evidence, manifest: ShardManifest | None = None) -> Verdict:
        verdict = classify(seen, manifest)
        return replace(verdict, failure_class=FailureClass.DONE) if seen.exit_code == 0 else verdict

    patch.setattr(judgement, "classify", credulous)


def _stops_those_that_make_progress(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planner, "_held_by", lambda _observed: {})


def _never_quarantines(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(consequences, "_condemned", lambda *_args, **_options: ())


def _blames_whoever_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(consequences, "_may_blame_records", lambda _verdict, _flight: True)
    patch.setattr(consequences, "_worst", lambda suspects, _strikes: 99 if suspects else 0)


def _finishes_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planner, "_are_all_final", lambda plan, manifests: len(manifests) == len(plan.shards))


def _forgets_who_has_been_judged(patch: pytest.MonkeyPatch) -> None:
    bounded = planner._bounded
    patch.setattr(planner, "_bounded", lambda *arguments: replace(bounded(*arguments), judged=()))


@pytest.mark.parametrize(
    ("mutate", "what_is_seen"),
    [
        (_charges_evictions, "evicted was charged|drained was charged"),
        (_trusts_an_old_listing, "released alive"),
        (_takes_exit_0_for_success, "exit0 went free"),
        (_stops_those_that_make_progress, "an open breaker stops"),
        (_never_quarantines, "Phase.FAILED|no end in sight"),
        (_blames_whoever_is_in_flight, "good record"),
        (_finishes_early, "finalised before its time|success without complete shards"),
        (_forgets_who_has_been_judged, "more failures counted|no end in sight|restarts fell"),
    ],
)
def test_a_mutation_is_caught(
    mutate: Callable[[pytest.MonkeyPatch], None], what_is_seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy or a planner with that mistake does not pass."""
    mutate(monkeypatch)

    with pytest.raises(AssertionError, match=what_is_seen):
        _all_simulated(MUTATION_SEEDS)


def test_a_breaker_that_never_opens_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that cannot work would go on for ever."""
    monkeypatch.setattr(judgement, "run_failed", lambda breaker, **_options: breaker)

    with pytest.raises(AssertionError, match="no end in sight"):
        _simulated(0, is_hopeless=True)
