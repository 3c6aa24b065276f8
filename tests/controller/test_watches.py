"""controller.watches: a cache that stays true through gaps, expired histories and servers that are away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from controller import watches
from controller.cluster import Cluster, Object, core_path
from controller.token_bucket import TokenBucket
from controller.watches import Reflector
from tests.controller.api_server import ApiServer, Trouble, refusal, serving, until

PODS = core_path("ns", "pods")


@dataclass(frozen=True)
class Entry:
    """What is kept of a pod."""

    name: str
    resource_version: str


@dataclass
class Cache:
    """A reflector at work, and what it has told."""

    server: ApiServer
    reflector: Reflector[Entry]
    gone: list[str] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """What it holds."""
        return {entry.name for entry in self.reflector.entries.values()}

    def put(self, name: str) -> Object:
        """Somebody makes or changes a pod."""
        return self.server.put(f"{PODS}/{name}", {"metadata": {"uid": f"uid-{name}"}})

    async def holds(self, *names: str) -> None:
        """Wait until it holds exactly these."""
        await until(lambda: self.names == set(names), f"{names}, not {self.names}")


def entry(pod: Object) -> Entry:
    """Parse a pod."""
    return Entry(pod["metadata"]["name"], pod["metadata"]["resourceVersion"])


def run(scenario: Callable[[Cache], Awaitable[None]]) -> None:
    """Run a scenario over a server with the pods a and b, seen and watched."""

    async def whole() -> None:
        async with serving() as server:
            cluster = Cluster(server.connect, writes=TokenBucket(1000, 1000), name="test")
            gone: list[str] = []
            reflector = Reflector(cluster, PODS, entry, gone=lambda old: gone.append(old.name))
            cache = Cache(server, reflector, gone)
            cache.put("a")
            cache.put("b")
            work = asyncio.create_task(reflector.run())
            try:
                await asyncio.wait_for(reflector.synced.wait(), 20)
                await until(lambda: server.num_watches, "the watch")
                await scenario(cache)
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                await cluster.close()

    asyncio.run(whole())


def test_changes_are_followed() -> None:
    """What comes, and what goes."""

    async def scenario(cache: Cache) -> None:
        cache.put("c")
        cache.server.remove(f"{PODS}/a")

        await cache.holds("b", "c")
        assert cache.gone == ["a"]

    run(scenario)


def test_an_expired_history_is_listed_anew() -> None:
    """A deletion that fell into the gap comes to light by comparison, and is told."""

    async def scenario(cache: Cache) -> None:
        del cache.server.objects[f"{PODS}/a"]  # no watch hears of it
        cache.put("c")
        cache.server.expire_watches()

        await cache.holds("b", "c")
        await until(lambda: cache.gone == ["a"], "the deletion")

    run(scenario)


@pytest.mark.parametrize("trouble", [refusal(500, "InternalError"), Trouble.RESET], ids=["500", "reset"])
def test_a_watch_that_breaks_is_begun_again(trouble: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a moment, from a list: nothing is lost meanwhile."""
    monkeypatch.setattr(watches, "MAX_BACKOFF_S", 0.05)

    async def scenario(cache: Cache) -> None:
        left = [trouble]
        cache.server.fault = lambda method, _path: left.pop() if left and method == "WATCH" else None  # type: ignore[assignment,return-value]
        cache.server.end_watches()
        await until(lambda: not left, "the trouble")
        cache.put("c")

        await cache.holds("a", "b", "c")

    run(scenario)


def test_what_a_request_has_shown_is_not_undone_by_what_is_older() -> None:
    """A reply of ours may be ahead of the watch."""

    async def scenario(cache: Cache) -> None:
        new = cache.put("a")
        old = {**new, "metadata": {**new["metadata"], "resourceVersion": "1"}}
        cache.reflector.put(new)
        cache.reflector.put(old)

        assert cache.reflector.entries["uid-a"].resource_version == new["metadata"]["resourceVersion"]

    run(scenario)


def test_silence_is_told() -> None:
    """What the liveness probe asks: it grows while nothing is heard, and any sign of life ends it."""

    async def scenario(cache: Cache) -> None:
        await until(lambda: cache.reflector.silent_s > 1.0, "some silence")
        cache.put("c")

        await until(lambda: cache.reflector.silent_s < 1.0, "a sign of life")

    run(scenario)
