"""controller.leader: one leads, the next takes over, and whoever cannot renew stops in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from controller import cluster as client
from controller.cluster import Cluster, lease_path
from controller.leader import Leader, LeadershipLost
from controller.settings import Settings
from controller.token_bucket import TokenBucket
from tests import make
from tests.controller.api_server import ApiServer, Trouble, refusal, serving, until

SETTINGS = Settings(
    lease_namespace="ns", lease_duration_s=2.0, lease_renew_deadline_s=1.0, lease_retry_s=0.05, identity="a"
)
LEASE = lease_path("ns", SETTINGS.lease_name)

Make = Callable[[str], Leader]


@asynccontextmanager
async def electing() -> AsyncIterator[tuple[ApiServer, Make]]:
    """A server, and candidates by name."""
    async with serving() as server:
        cluster = Cluster(server.connect, writes=TokenBucket(1000, 1000), name="test")
        try:
            yield server, lambda name: Leader(cluster, replace(SETTINGS, identity=name), now=lambda: make.NOW)
        finally:
            await cluster.close()


def run(scenario: Callable[[ApiServer, Make], Awaitable[None]]) -> None:
    """Run a scenario to its end."""

    async def whole() -> None:
        async with electing() as (server, candidate):
            await asyncio.wait_for(scenario(server, candidate), 60)

    asyncio.run(whole())


def holder(server: ApiServer) -> str:
    """Who the Lease says leads."""
    return str(server.objects[LEASE]["spec"]["holderIdentity"])


def test_the_first_leads_and_the_second_waits_until_it_falls_silent() -> None:
    """For the duration of the Lease, by its own clock; then it takes over, and the transition is counted."""

    async def scenario(server: ApiServer, candidate: Make) -> None:
        first, second = candidate("a"), candidate("b")
        await first.acquire()
        keeping = asyncio.create_task(first.keep())
        waiting = asyncio.create_task(second.acquire())
        done, _ = await asyncio.wait({waiting}, timeout=2.4)
        was_kept_out = not done and holder(server) == "a"
        keeping.cancel()
        await waiting

        assert was_kept_out
        assert (holder(server), server.objects[LEASE]["spec"]["leaseTransitions"]) == ("b", 1)

    run(scenario)


def test_a_lease_that_is_given_up_is_free_at_once() -> None:
    """The next one need not wait for it to run out."""

    async def scenario(server: ApiServer, candidate: Make) -> None:
        first, second = candidate("a"), candidate("b")
        await first.acquire()
        await first.give_up()
        await asyncio.wait_for(second.acquire(), SETTINGS.lease_duration_s - 0.5)

        assert holder(server) == "b"

    run(scenario)


def test_a_leader_whose_lease_is_taken_stops_at_once() -> None:
    """It was paused for too long, and somebody else leads."""

    async def scenario(server: ApiServer, candidate: Make) -> None:
        leader = candidate("a")
        await leader.acquire()
        lease = server.objects[LEASE]
        server.put(LEASE, {**lease, "spec": {**lease["spec"], "holderIdentity": "b"}})
        with pytest.raises(LeadershipLost):
            await asyncio.wait_for(leader.keep(), SETTINGS.lease_renew_deadline_s - 0.1)

        assert not leader.is_leading

    run(scenario)


@pytest.mark.parametrize("trouble", ["503", "reset", "silence"])
def test_a_leader_that_cannot_renew_stops_before_anybody_else_may_lead(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the API server does: at its renewal deadline, which is shorter than the Lease's duration."""
    monkeypatch.setattr(client, "RETRY_BUDGET_S", 0.1)
    troubles = {"503": lambda: refusal(503, ""), "reset": lambda: Trouble.RESET, "silence": lambda: Trouble.SILENCE}

    async def scenario(server: ApiServer, candidate: Make) -> None:
        leader = candidate("a")
        await leader.acquire()
        server.fault = lambda _method, _path: troubles[trouble]()
        started_s = asyncio.get_running_loop().time()
        with pytest.raises(LeadershipLost):
            await leader.keep()

        assert asyncio.get_running_loop().time() - started_s < SETTINGS.lease_duration_s

    run(scenario)


def test_a_short_absence_of_the_server_costs_nothing() -> None:
    """It is renewed once the server answers again, within the deadline."""

    async def scenario(server: ApiServer, candidate: Make) -> None:
        leader = candidate("a")
        await leader.acquire()
        left = [refusal(503, "")]
        server.fault = lambda _method, _path: left.pop() if left else None
        before = server.objects[LEASE]["metadata"]["resourceVersion"]
        keeping = asyncio.create_task(leader.keep())
        await until(lambda: server.objects[LEASE]["metadata"]["resourceVersion"] != before, "a renewal")
        is_lost = keeping.done()
        keeping.cancel()

        assert not is_lost
        assert not left

    run(scenario)
