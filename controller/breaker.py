"""Circuit breakers of nodes and of the run, as frozen values and the functions that change them. Pure.

    closed      all is well; failures are counted
    open        too many: no new worker (run), or none on that node
    half-open   the wait is over: one probe decides

They persist with the controller's memory. Losing them costs a few more failures and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from controller.api import NodeBreakerPolicy, RunBreakerPolicy

NODES_KEPT = 256
"""Nodes remembered at once, latest failures first; more in one window is an outage, not a bad node."""


class BreakerState(StrEnum):
    """Where a breaker stands at an instant."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "halfOpen"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBreaker:
    """Stops a run whose workers fail without getting anywhere. `RunBreaker()` is closed: progress leads back to it."""

    num_openings: int = 0
    """Openings in a row, with no progress between."""
    retry_at: datetime | None = None
    """When the next probe may start; None = closed."""
    failures: tuple[datetime, ...] = ()
    """Counted failures since the last progress, within the window."""
    reason: str = ""
    """What opened it, and what to do; kept until it closes."""


def run_state(breaker: RunBreaker, now: datetime) -> BreakerState:
    """State of the run's breaker at `now`."""
    if breaker.retry_at is None:
        return BreakerState.CLOSED
    return BreakerState.OPEN if now < breaker.retry_at else BreakerState.HALF_OPEN


def run_failed(
    breaker: RunBreaker, *, is_decisive: bool, reason: str, policy: RunBreakerPolicy, now: datetime
) -> RunBreaker:
    """The breaker after a counted failure.

    While it is open, stragglers of the same cause change nothing. When half-open, the first failure opens it again,
    for twice as long.

    Args:
        breaker: as it stood.
        is_decisive: opens at once: nobody but the user can mend it.
        reason: evidence and advice, one sentence each.
        policy: numbers.
        now: when it failed.
    """
    state = run_state(breaker, now)
    if state is BreakerState.OPEN:
        return breaker
    since = now - timedelta(seconds=policy.window_s)
    failures = (*(item for item in breaker.failures if item > since), now)[-policy.failures :]
    if state is BreakerState.CLOSED and not is_decisive and len(failures) < policy.failures:
        return replace(breaker, failures=failures)
    wait_s = min(policy.probe_cap_s, policy.probe_s * 2**breaker.num_openings)
    return RunBreaker(
        num_openings=breaker.num_openings + 1,
        retry_at=now + timedelta(seconds=wait_s),
        failures=failures,
        reason=reason,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBreaker:
    """What is held against one node."""

    node: str
    scores: tuple[tuple[datetime, int], ...] = ()
    """(when, how much) within the window."""
    avoided_until: datetime | None = None
    """No new worker before; None = closed. Once passed: one probe at a time, until progress or a quiet `avoid_s`."""


NodeBreakers = tuple[NodeBreaker, ...]


def node_failed(
    nodes: NodeBreakers, *, node: str, score: int, policy: NodeBreakerPolicy, now: datetime
) -> NodeBreakers:
    """All breakers after a failure that speaks against `node`; an unknown node (empty) is nobody's fault."""
    if not node or not score:
        return nodes
    current = next((item for item in nodes if item.node == node), NodeBreaker(node=node))
    since = now - timedelta(seconds=policy.window_s)
    scores = (*((at, points) for at, points in current.scores if at > since), (now, score))[-policy.score :]
    is_probe = current.avoided_until is not None and now >= current.avoided_until
    has_opened = is_probe or sum(points for _, points in scores) >= policy.score
    changed = replace(
        current,
        scores=scores,
        avoided_until=now + timedelta(seconds=policy.avoid_s) if has_opened else current.avoided_until,
    )
    return (*(item for item in nodes if item.node != node), changed)[-NODES_KEPT:]


def node_progressed(nodes: NodeBreakers, *, node: str, claimed_at: datetime) -> NodeBreakers:
    """All breakers after a commit by a worker on `node` that claimed its shard at `claimed_at`.

    Only a claim after the wait closes the breaker: a worker from before says nothing new.
    """
    return tuple(
        item for item in nodes if item.node != node or item.avoided_until is None or claimed_at < item.avoided_until
    )


def nodes_remembered(nodes: NodeBreakers, *, policy: NodeBreakerPolicy, now: datetime) -> NodeBreakers:
    """Without the nodes that nothing is held against any more."""
    since = now - timedelta(seconds=policy.window_s)
    quiet = now - timedelta(seconds=policy.avoid_s)
    return tuple(
        item
        for item in nodes
        if (item.avoided_until is None and any(at > since for at, _ in item.scores))
        or (item.avoided_until is not None and item.avoided_until > quiet)
    )


def nodes_to_avoid(nodes: NodeBreakers, *, occupied: Collection[str], now: datetime) -> tuple[str, ...]:
    """Nodes, sorted, where no worker may be started now.

    Args:
        nodes: all breakers.
        occupied: nodes that have a live worker of this run: on a half-open node that one is the probe.
        now: the instant of the decision.
    """
    return tuple(
        sorted(
            item.node
            for item in nodes
            if item.avoided_until is not None and (now < item.avoided_until or item.node in occupied)
        )
    )
