"""controller.capacity: when spot capacity does not come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.api import InferenceRun
from controller.capacity import granted, impatient
from controller.pods import STRANGER, PodFacts, read_pod
from tests import make
from tests.controller.test_pods import pod, running
from tests.make import NOW, later


def run(*, after_s: float | None = 60, prefer: str = "spot") -> InferenceRun:
    """A run on GKE that takes on-demand capacity after `after_s`."""
    capacity: dict[str, Any] = {"provider": "gke", "prefer": prefer, "onDemandAfterPendingSeconds": after_s}
    return make.run({"workers": {"capacity": capacity}})


def pending(**changes: Any) -> PodFacts:
    """A pod in slot 0 that waits for a node since NOW."""
    return replace(read_pod(pod("Pending", node=None)), created_at=NOW, **changes)


def test_a_pod_that_waits_for_too_long_is_impatient() -> None:
    """Not before its time, and not when its place has been granted capacity already."""
    facts = pending()

    assert impatient(run(), [facts], (), now=later(59)) == ()
    assert impatient(run(), [facts], (), now=later(60)) == (facts,)
    assert impatient(run(), [facts], (0,), now=later(60)) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"node": "node-a"},
        {"is_deleted": True},
        {"deletion_at": NOW},
        {"phase": "Failed"},
        {"slot": STRANGER},
        {"is_gated": True},
    ],
)
def test_others_wait_for_something_else(changes: dict[str, Any]) -> None:
    """A pod that is placed, going, another run's, or held back by a queue does not lack capacity."""
    assert impatient(run(), [pending(**changes)], (), now=later(9999)) == ()


@pytest.mark.parametrize("options", [{"after_s": None}, {"prefer": "onDemand"}])
def test_not_every_run_takes_it(options: dict[str, Any]) -> None:
    """Without a limit a run waits for ever; one on demand has nothing to fall back to."""
    assert impatient(run(**options), [pending()], (), now=later(9999)) == ()


def test_a_place_is_served_once_a_pod_of_it_runs() -> None:
    """Then it prefers spot again."""
    assert granted((), [pending()], [pending()]) == (0,)
    assert granted((0, 3), [pending()], []) == (0, 3)
    assert granted((0, 3), [read_pod(pod(state=running()))], []) == (3,)
