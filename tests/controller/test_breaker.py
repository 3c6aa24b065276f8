"""controller.breaker: the node's and the run's circuit breakers."""

from __future__ import annotations

import pytest

from controller.api import NodeBreakerPolicy, RunBreakerPolicy
from controller.breaker import (
    NODES_KEPT,
    BreakerState,
    NodeBreakers,
    RunBreaker,
    node_failed,
    node_progressed,
    nodes_remembered,
    nodes_to_avoid,
    run_failed,
    run_state,
)
from tests.make import later

RUN = RunBreakerPolicy()
NODE = NodeBreakerPolicy()


def _failed(breaker: RunBreaker, seconds: float, *, is_decisive: bool = False) -> RunBreaker:
    return run_failed(breaker, is_decisive=is_decisive, reason="exit 1", policy=RUN, now=later(seconds))


def _after(*seconds: float) -> RunBreaker:
    breaker = RunBreaker()
    for instant in seconds:
        breaker = _failed(breaker, instant)
    return breaker


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ((), BreakerState.CLOSED),
        ((0, 1, 2, 3), BreakerState.CLOSED),
        ((0, 1, 2, 3, 4), BreakerState.OPEN),
        ((-700, 1, 2, 3, 4), BreakerState.CLOSED),
    ],
)
def test_five_failures_in_ten_minutes_open_the_run(failures: tuple[float, ...], expected: BreakerState) -> None:
    """Five counted failures within the window open it; a failure that is older does not count."""
    assert run_state(_after(*failures), later(5)) is expected


def test_a_decisive_failure_opens_at_once() -> None:
    """A configuration error opens the breaker by itself, and is kept as its reason."""
    breaker = _failed(RunBreaker(), 0, is_decisive=True)

    assert run_state(breaker, later(1)) is BreakerState.OPEN
    assert breaker.reason == "exit 1"


def test_the_wait_doubles_up_to_its_cap() -> None:
    """A probe that fails opens the breaker again for 1, 2, 4, 8, 16, 30, 30 minutes."""
    breaker, now, waits = RunBreaker(), 0.0, []
    for _ in range(7):
        breaker = _failed(breaker, now, is_decisive=True)
        assert breaker.retry_at is not None
        waits.append((breaker.retry_at - later(now)).total_seconds() / 60)
        now = (breaker.retry_at - later(0)).total_seconds()

    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert breaker.num_openings == 7


def test_stragglers_do_not_prolong_an_open_breaker() -> None:
    """Workers that die of the same cause while it is open change nothing."""
    breaker = _failed(RunBreaker(), 0, is_decisive=True)

    assert _failed(breaker, 30, is_decisive=True) == breaker


def test_half_open_once_the_wait_is_over_and_one_failure_reopens() -> None:
    """After the wait one probe decides: its first failure, decisive or not, opens again."""
    breaker = _failed(RunBreaker(), 0, is_decisive=True)

    assert run_state(breaker, later(60)) is BreakerState.HALF_OPEN
    assert run_state(_failed(breaker, 61), later(62)) is BreakerState.OPEN


def _nodes(*scores: tuple[float, int], node: str = "a", start: NodeBreakers = ()) -> NodeBreakers:
    for at, score in scores:
        start = node_failed(start, node=node, score=score, policy=NODE, now=later(at))
    return start


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (((0, 1), (1, 1)), ()),
        (((0, 1), (1, 1), (2, 1)), ("a",)),
        (((0, 3),), ("a",)),
        (((-1801, 1), (1, 1), (2, 1)), ()),
        (((0, 0), (1, 0), (2, 0)), ()),
    ],
)
def test_a_score_of_three_in_half_an_hour_keeps_workers_away(
    scores: tuple[tuple[float, int], ...], expected: tuple[str, ...]
) -> None:
    """Points within the window add up; a hardware fault is enough alone."""
    assert nodes_to_avoid(_nodes(*scores), occupied=(), now=later(10)) == expected


def test_after_an_hour_one_probe_at_a_time() -> None:
    """A half-open node takes one worker: as long as that one is there, no second."""
    nodes = _nodes((0, 3))

    assert nodes_to_avoid(nodes, occupied=(), now=later(3599)) == ("a",)
    assert nodes_to_avoid(nodes, occupied=(), now=later(3601)) == ()
    assert nodes_to_avoid(nodes, occupied={"a"}, now=later(3601)) == ("a",)


def test_a_failing_probe_closes_the_node_for_another_hour() -> None:
    """One point is enough when half-open."""
    nodes = _nodes((0, 3), (3700, 1))

    assert nodes_to_avoid(nodes, occupied=(), now=later(3700 + 3599)) == ("a",)


@pytest.mark.parametrize(("claimed_at", "is_remembered"), [(3599, True), (3601, False)])
def test_only_progress_of_a_probe_clears_a_node(claimed_at: float, is_remembered: bool) -> None:  # noqa: FBT001
    """A worker that claimed before the wait was over says nothing new about the node."""
    nodes = node_progressed(_nodes((0, 3)), node="a", claimed_at=later(claimed_at))

    assert bool(nodes) is is_remembered


def test_progress_elsewhere_clears_nothing() -> None:
    """A commit on another node, or on one that is not avoided, leaves the points where they are."""
    nodes = _nodes((0, 1), node="b", start=_nodes((0, 3)))

    assert node_progressed(nodes, node="c", claimed_at=later(9999)) == nodes
    assert node_progressed(nodes, node="b", claimed_at=later(9999)) == nodes


def test_quiet_nodes_are_forgotten() -> None:
    """Points leave with the window, an avoided node an hour after its wait."""
    nodes = _nodes((0, 1), node="b", start=_nodes((0, 3)))

    def remembered(seconds: float) -> set[str]:
        return {item.node for item in nodes_remembered(nodes, policy=NODE, now=later(seconds))}

    assert remembered(1) == {"a", "b"}
    assert remembered(1801) == {"a"}
    assert remembered(7201) == set()


def test_nodes_are_bounded() -> None:
    """An outage of thousands of nodes does not fill the memory."""
    nodes: NodeBreakers = ()
    for number in range(NODES_KEPT + 10):
        nodes = node_failed(nodes, node=f"n{number}", score=1, policy=NODE, now=later(0))

    assert len(nodes) == NODES_KEPT
    assert nodes[-1].node == f"n{NODES_KEPT + 9}"


def test_an_unknown_node_is_nobodys_fault() -> None:
    """A worker that was never placed scores against no node."""
    assert _nodes((0, 3), node="") == ()
