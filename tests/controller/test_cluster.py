"""controller.cluster against a server that stumbles: what is tried again, what is given up, and what each refusal means."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from controller import cluster as client
from controller.cluster import (
    ApiError,
    ApiUnavailable,
    Cluster,
    HistoryExpired,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    core_path,
)
from controller.token_bucket import TokenBucket
from tests.controller.api_server import ApiServer, Trouble, refusal, serving, until

POD = core_path("ns", "pods", "p")
PODS = core_path("ns", "pods")


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[ApiServer, Cluster]]:
    """A server with one pod, and a client of it."""
    async with serving() as server:
        cluster = Cluster(server.connect, writes=TokenBucket(1000, 1000), name="test")
        server.put(POD, {"metadata": {}})
        try:
            yield server, cluster
        finally:
            await cluster.close()


def run(scenario: Callable[[ApiServer, Cluster], Awaitable[None]]) -> None:
    """Run a scenario to its end."""

    async def whole() -> None:
        async with connected() as (server, cluster):
            await scenario(server, cluster)

    asyncio.run(whole())


TROUBLES = [lambda: refusal(429, "TooManyRequests"), lambda: refusal(503, "Unavailable"), lambda: Trouble.RESET]


@pytest.mark.parametrize("trouble", TROUBLES, ids=["429", "503", "reset"])
def test_what_may_pass_is_tried_again(trouble: Callable[[], object]) -> None:
    """Twice it fails, then it is as if nothing had been."""

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        left = [trouble(), trouble()]
        server.fault = lambda _method, _path: left.pop() if left else None  # type: ignore[assignment]
        found = await cluster.get(POD)

        assert found["metadata"]["name"] == "p"
        assert len(server.requests) == 3

    run(scenario)


@pytest.mark.parametrize("trouble", TROUBLES, ids=["429", "503", "reset"])
def test_what_does_not_pass_is_given_up(trouble: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the budget of one request, with what was seen last."""
    monkeypatch.setattr(client, "RETRY_BUDGET_S", 0.4)

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        server.fault = lambda _method, _path: trouble()  # type: ignore[assignment,return-value]
        started_s = time.monotonic()
        with pytest.raises(ApiUnavailable, match=f"GET {POD}"):
            await cluster.get(POD)

        assert time.monotonic() - started_s < 5

    run(scenario)


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is taken and never answered must not hold a reconcile for ever."""
    monkeypatch.setattr(client, "RETRY_BUDGET_S", 0.2)
    monkeypatch.setattr(client, "REQUEST_TIMEOUT_S", 0.2)

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        server.fault = lambda _method, _path: Trouble.SILENCE
        with pytest.raises(ApiUnavailable):
            await cluster.get(POD)

    run(scenario)


def test_each_refusal_has_its_error() -> None:
    """What the caller must do differs: read anew, take it for done, or give up. None of them is tried again."""

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        with pytest.raises(ObjectExists):
            await cluster.create(PODS, {"metadata": {"name": "p"}})
        with pytest.raises(ObjectMissing):
            await cluster.get(core_path("ns", "pods", "other"))
        with pytest.raises(ObjectChanged):
            await cluster.patch(POD, {"metadata": {"resourceVersion": "1"}})
        server.fault = lambda _method, _path: refusal(403, "Forbidden", "quota")
        with pytest.raises(ApiError, match="quota"):
            await cluster.create(PODS, {"metadata": {"name": "q"}})

        assert len(server.requests) == 4

    run(scenario)


def test_a_deletion_never_meets_another_object_of_the_name() -> None:
    """The uid is a condition; what is gone, or another's, counts as deleted."""

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        await cluster.delete(POD, uid="somebody else")
        await cluster.delete(core_path("ns", "pods", "other"), uid="gone")

        assert POD in server.objects

    run(scenario)


def test_lists_are_read_by_the_page_and_begun_anew_when_a_page_has_expired() -> None:
    """A list that takes minutes may outlive its own version."""

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        for number in range(4):
            server.put(core_path("ns", "pods", f"p{number}"), {"metadata": {}})
        server.page = 2
        expired = [refusal(410, "Expired")]

        def second_page(_method: str, _path: str) -> object:
            return expired.pop() if expired and len(server.requests) == 2 else None

        server.fault = second_page  # type: ignore[assignment]
        found, version = await cluster.list_all(PODS)

        assert [item["metadata"]["name"] for item in found] == ["p", "p0", "p1", "p2", "p3"]
        assert version == str(server.version)
        assert len(server.requests) == 2 + 3

    run(scenario)


def test_a_list_that_expires_each_time_is_given_up() -> None:
    """Its caller waits before it asks again: a busy server is not asked without a pause."""

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        server.fault = lambda _method, _path: refusal(410, "Expired")
        with pytest.raises(ApiUnavailable, match="expired between its pages 3 times"):
            await cluster.list_all(PODS)

        assert len(server.requests) == 3

    run(scenario)


async def watched(cluster: Cluster, since: str = "0") -> list[str]:
    """Names that a watch shows until it ends."""
    return [
        found["metadata"].get("name", kind)
        async for kind, found in cluster.watch(PODS, since=since)
        if kind != "BOOKMARK"
    ]


def test_a_watch_ends_when_it_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever TCP says: it is begun anew from where it was."""
    monkeypatch.setattr(client, "WATCH_SILENCE_S", 1.0)

    async def scenario(_server: ApiServer, cluster: Cluster) -> None:
        assert await watched(cluster) == ["p"]

    run(scenario)


def test_a_watch_that_is_too_old_says_so() -> None:
    """As an answer, or as an event of one that has been going on."""

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        server.fault = lambda _method, _path: refusal(410, "Expired")
        with pytest.raises(HistoryExpired):
            await watched(cluster)
        server.fault = lambda _method, _path: None
        watch = asyncio.create_task(watched(cluster))
        await until(lambda: server.num_watches, "the watch")
        server.expire_watches()
        with pytest.raises(HistoryExpired):
            await watch

    run(scenario)


def test_a_watch_that_breaks_says_so() -> None:
    """The caller waits a little before the next."""

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        server.fault = lambda _method, _path: Trouble.RESET
        with pytest.raises(ApiUnavailable):
            await watched(cluster)

    run(scenario)


def test_the_end_of_a_log_is_asked_for_once() -> None:
    """Its last bytes, however long it is; a kubelet that fails is not pressed."""

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        server.logs["p"] = "x" * 300_000 + "end"
        tail = await cluster.get_tail(f"{POD}/log", num_bytes=10)
        server.fault = lambda _method, _path: refusal(500, "InternalError", "no such container")
        with pytest.raises(ApiError, match="no such container"):
            await cluster.get_tail(f"{POD}/log", num_bytes=1000)

        assert tail == b"xxxxxxxend"
        assert len(server.requests) == 2

    run(scenario)


def test_logs_that_do_not_come_leave_connections_to_the_rest() -> None:
    """However many are asked for at once: pods are still created, and the Lease is renewed."""

    async def scenario(server: ApiServer, cluster: Cluster) -> None:
        server.logs["p"] = "end"
        server.log_gate = asyncio.Event()
        tails = [asyncio.create_task(cluster.get_tail(f"{POD}/log", num_bytes=10)) for _ in range(100)]
        await until(lambda: len(server.requests) == client.TAILS, "the first logs to be asked for")
        async with asyncio.timeout(client.TAIL_TIMEOUT_S / 2):
            found = await cluster.get(POD)
        server.log_gate.set()

        assert found["metadata"]["name"] == "p"
        assert await asyncio.gather(*tails) == [b"end"] * 100

    run(scenario)
