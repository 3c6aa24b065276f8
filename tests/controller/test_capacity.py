"""controller.capacity: when a run that prefers spot takes on-demand capacity, and when it gives it up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.api import InferenceRun
from controller.capacity import CapacityChoice, OffSpot, choose_capacity, num_open_shards
from controller.eviction_rate import EvictionRate
from controller.pods import STRANGER, PodFacts, read_pod
from tests import make
from tests.controller.test_pods import pod, running
from tests.make import NOW, later

QUIET = EvictionRate(as_of=NOW)


def run(*, prefer: str = "spot", **capacity: Any) -> InferenceRun:
    """A run on GKE that takes on-demand capacity after a minute, and gives it up after ten."""
    defaults = {"onDemandAfterPendingSeconds": 60, "returnToSpotAfterSeconds": 600}
    return make.run({"workers": {"capacity": {"provider": "gke", "prefer": prefer, **defaults, **capacity}}})


def pending(**changes: Any) -> PodFacts:
    """A pod in slot 0 that waits for a node since NOW."""
    return replace(read_pod(pod("Pending", node=None)), created_at=NOW, **changes)


def on_demand(**changes: Any) -> PodFacts:
    """A worker in slot 0 that runs on demand since NOW."""
    return replace(read_pod(pod(state=running())), is_on_demand=True, started_at=NOW, **changes)


def chosen(
    *pods: PodFacts,
    of: InferenceRun | None = None,
    off_spot: OffSpot | None = None,
    rate: EvictionRate = QUIET,
    num_shards: int = 100,
    after_s: float = 0,
) -> CapacityChoice:
    """The choice at `after_s`."""
    return choose_capacity(
        of or run(),
        pods,
        off_spot=off_spot or OffSpot(),
        eviction_rate=rate,
        num_open_shards=num_shards,
        now=later(after_s),
    )


def test_a_pod_that_waits_for_too_long_is_impatient() -> None:
    """Not before its time; then its place is granted on-demand capacity."""
    facts = pending()

    assert chosen(facts, after_s=59).impatient == ()
    assert chosen(facts, after_s=60).impatient == (facts,)
    assert chosen(facts, after_s=60).is_on_demand(0)
    assert not chosen(facts, after_s=60).is_on_demand(1)


def test_a_pod_stays_impatient_until_it_is_stopped() -> None:
    """A controller that died after noting the grant has stopped nobody: the next one does. The pod on demand may wait."""
    granted = OffSpot(slots=(0,))

    assert chosen(pending(), off_spot=granted, after_s=60).impatient == (pending(),)
    assert chosen(pending(is_on_demand=True), off_spot=granted, after_s=60).impatient == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"node": "node-a"},
        {"is_deleted": True},
        {"deletion_at": NOW},
        {"phase": "Failed"},
        {"slot": STRANGER},
        {"is_gated": True},
        {"is_on_demand": True},
    ],
)
def test_others_wait_for_something_else(changes: dict[str, Any]) -> None:
    """A pod that is placed, going, another run's, held back by a queue or on demand does not lack spot capacity."""
    assert chosen(pending(**changes), after_s=9999).impatient == ()


def test_not_every_run_takes_it() -> None:
    """Without a limit a run waits for ever; one on demand has nothing to fall back to."""
    assert chosen(pending(), of=run(onDemandAfterPendingSeconds=None), after_s=9999).impatient == ()
    assert chosen(pending(), of=run(prefer="onDemand"), after_s=9999) == CapacityChoice(
        off_spot=OffSpot(), eviction_rate=QUIET
    )


def test_a_place_is_served_once_a_pod_of_it_runs() -> None:
    """Then its next pod prefers spot again."""
    assert chosen(pending(), off_spot=OffSpot(slots=(0, 3))).off_spot.slots == (0, 3)
    assert chosen(read_pod(pod(state=running())), off_spot=OffSpot(slots=(0, 3))).off_spot.slots == (3,)


def test_a_storm_of_evictions_takes_all_places_off_spot() -> None:
    """Above the limit, for the time that was set; then the rate begins anew, so that old evictions say nothing."""
    limited = run(onDemandAboveEvictionsPerHour=4)
    calm, storm = EvictionRate(as_of=NOW, evictions=7, worker_hours=0), EvictionRate(as_of=NOW, evictions=8)
    begun = chosen(of=limited, rate=storm)
    going = chosen(of=limited, rate=storm, off_spot=begun.off_spot, after_s=599)
    ended = chosen(of=limited, rate=storm, off_spot=begun.off_spot, after_s=600)

    assert not chosen(of=limited, rate=calm).is_on_demand(5)
    assert not chosen(rate=storm).is_on_demand(5)
    assert begun.off_spot.until == later(600)
    assert going.is_on_demand(5)
    assert not ended.is_on_demand(5)
    assert ended.eviction_rate == EvictionRate(as_of=later(600))


def test_the_last_shards_are_kept_off_spot() -> None:
    """With no more than so many left, whatever starts is on demand."""
    tail = run(onDemandForLastShards=3)

    assert [chosen(of=tail, num_shards=number).is_on_demand(0) for number in (4, 3, 1)] == [False, True, True]


def test_spot_is_tried_again_by_one_worker_at_a_time() -> None:
    """The one that has been on demand for longest, when its time is over."""
    first, second = on_demand(), on_demand(slot=1, uid="uid-1")
    second = replace(second, started_at=later(100))

    assert chosen(first, second, after_s=599).returning == ()
    assert chosen(second, first, after_s=5000).returning == (first,)
    assert chosen(replace(first, deletion_at=NOW), second, after_s=5000).returning == ()


@pytest.mark.parametrize(
    ("waiting", "options"),
    [
        ((pending(slot=1, uid="uid-1"),), {}),
        ((), {"off_spot": OffSpot(until=later(9999))}),
        ((), {"of": run(onDemandForLastShards=5), "num_shards": 5}),
    ],
)
def test_spot_is_not_tried_while_there_is_reason_to_keep_off_it(
    waiting: tuple[PodFacts, ...], options: dict[str, Any]
) -> None:
    """A pod waits for a node, evictions come too often, or the run is at its end."""
    assert chosen(on_demand(), *waiting, after_s=5000, **options).returning == ()


def test_open_shards_are_those_that_are_not_final() -> None:
    """Never claimed, pending and running ones."""
    manifests = {0: make.complete(0), 1: make.held(1)}

    assert num_open_shards(make.plan(4), manifests) == 3
