"""controller.replacements: which ends are waited upon, and for how long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller import replacements
from controller.observed import Evidence, Intent
from controller.pods import STRANGER, PodFacts, gone, read_pod
from controller.replacements import Replacements, Stage
from tests.controller.test_pods import pod, running, terminated


def facts(attempt: int, *, slot: int = 0, state: dict[str, Any] | None = None) -> PodFacts:
    """A pod of an attempt, by default one that waits to be placed."""
    return replace(read_pod(pod("Pending", state=state)), attempt=attempt, slot=slot)


def ended(attempt: int, *, slot: int = 0, **evidence: Any) -> PodFacts:
    """A pod whose worker was killed from outside."""
    return replace(facts(attempt, slot=slot), evidence=Evidence(**{"exit_code": 137, **evidence}))


def test_both_stages_are_timed_from_the_end() -> None:
    """Created after two seconds, running after nine; neither is told twice."""
    seen = Replacements()

    told = [
        seen.saw(found, at_s=at_s)
        for at_s, found in (
            (1.0, facts(1, state=running())),
            (10.0, ended(1)),
            (11.0, gone(ended(1))),
            (12.0, facts(2)),
            (13.0, facts(2)),
            (19.0, facts(2, state=running())),
            (20.0, facts(2, state=running())),
        )
    ]

    assert told == [[], [], [], [(Stage.CREATED, 2.0)], [], [(Stage.RUNNING, 9.0)], []]


def test_a_replacement_that_fails_starts_anew() -> None:
    """Its own end is waited upon, also when it never ran."""
    seen = Replacements()
    seen.saw(ended(1), at_s=0.0)
    seen.saw(facts(2), at_s=1.0)
    seen.saw(ended(2), at_s=5.0)

    assert seen.saw(facts(3, state=running()), at_s=8.0) == [(Stage.CREATED, 3.0), (Stage.RUNNING, 3.0)]


def test_a_pod_that_vanishes_has_ended() -> None:
    """An evicted pod may be gone before it says anything."""
    seen = Replacements()
    seen.saw(gone(facts(1, state=running())), at_s=0.0)

    assert seen.saw(facts(2), at_s=4.0) == [(Stage.CREATED, 4.0)]


@pytest.mark.parametrize(
    "last",
    [
        ended(1, exit_code=0),
        ended(1, intent=Intent.SUSPENDED),
        ended(1, has_termination_target=True),
        replace(ended(1), slot=STRANGER),
    ],
    ids=["no work left", "stopped by us", "stopped by Kueue", "of an earlier run"],
)
def test_ends_that_ask_for_nothing_are_not_waited_upon(last: PodFacts) -> None:
    """A run that is resumed hours later has not waited for hours."""
    seen = Replacements()
    seen.saw(last, at_s=0.0)

    assert seen.saw(replace(facts(2), slot=last.slot), at_s=7200.0) == []


def test_places_and_runs_are_told_apart() -> None:
    """The replacement of one is none of another."""
    seen = Replacements()
    seen.saw(ended(1, slot=0), at_s=0.0)

    assert seen.saw(facts(2, slot=1), at_s=1.0) == []
    assert seen.saw(replace(facts(2, slot=0), run_uid="another"), at_s=2.0) == []
    assert seen.saw(facts(2, slot=0), at_s=3.0) == [(Stage.CREATED, 3.0)]


def test_only_the_latest_ends_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places that are never filled again cost no memory without bound."""
    monkeypatch.setattr(replacements, "ENDS_KEPT", 2)
    seen = Replacements()
    for slot in range(3):
        seen.saw(ended(1, slot=slot), at_s=0.0)

    assert [bool(seen.saw(facts(2, slot=slot), at_s=1.0)) for slot in range(3)] == [False, True, True]


def test_an_end_is_one_of_a_container() -> None:
    """As `read_pod` gives it: the worker's own exit, whatever the pod's phase says."""
    seen = Replacements()
    seen.saw(read_pod(pod("Running", state=terminated(75))), at_s=0.0)

    assert seen.saw(facts(2), at_s=1.0) == [(Stage.CREATED, 1.0)]
