"""controller.runs: which runs there are, whatever a watch leaves out, and who has an output."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from contract.store.open import normalised_uri
from controller import ledger
from controller.cluster import Cluster, Object, run_path
from controller.ledger import Ledger
from controller.observation import RunKey
from controller.runs import Runs
from controller.token_bucket import TokenBucket
from tests import make
from tests.controller.api_server import ApiServer, serving, until


@dataclass
class Reconciler:
    """Stands for `RunReconciler`: notes what it is told, and works until its run is gone."""

    resource: Object
    num_wakes: int = 0
    is_gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> RunKey:
        """See RunReconciler."""
        metadata = self.resource["metadata"]
        return RunKey(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])

    def saw(self, resource: Object) -> None:
        """See RunReconciler."""
        self.resource = resource

    def wake(self) -> None:
        """See RunReconciler."""
        self.num_wakes += 1

    def gone(self) -> None:
        """See RunReconciler."""
        self.is_gone.set()

    async def work(self) -> None:
        """See RunReconciler."""
        await self.is_gone.wait()


@dataclass
class Bench:
    """All runs, and the server that has them."""

    server: ApiServer
    cluster: Cluster
    runs: Runs
    made: list[Reconciler]

    @property
    def at_work(self) -> set[str]:
        """Names of the runs that are reconciled."""
        return {item.key.name for item in self.made if not item.is_gone.is_set()}

    def put(self, name: str, *, output: str = "out", created: str = "2026-01-01T12:00:00Z", **status: Any) -> Object:
        """A run on the server."""
        found = make.resource({"output": {"uri": output}}, name=name)
        metadata = {"uid": f"uid-{name}", "creationTimestamp": created}
        return self.server.put(run_path("ns", name), {**found, "metadata": metadata, "status": status})

    def list_soon(self, tell: Callable[[Collection[str]], None] = lambda _uids: None) -> asyncio.Task[None]:
        """List once now, and again in a minute."""
        return asyncio.create_task(self.runs.keep_listed(self.cluster, "", tell=tell))


def run(scenario: Callable[[Bench], Awaitable[None]]) -> None:
    """Run a scenario to its end."""

    async def whole() -> None:
        async with serving() as server:
            cluster = Cluster(server.connect, writes=TokenBucket(1000, 1000), name="test")
            made: list[Reconciler] = []

            def make_one(resource: Object) -> Reconciler:
                made.append(Reconciler(resource))
                return made[-1]

            runs = Runs(make=make_one)  # type: ignore[arg-type]
            try:
                await scenario(Bench(server, cluster, runs, made))
            finally:
                await runs.stop()
                await cluster.close()

    asyncio.run(whole())


def test_a_list_takes_in_what_the_watch_has_left_out() -> None:
    """A new run is reconciled, and one that is gone is let go, though no watch said so of either."""

    async def scenario(bench: Bench) -> None:
        bench.runs.watched(bench.put("gone"), is_deleted=False)
        bench.server.remove(run_path("ns", "gone"))
        bench.put("new")
        listing = bench.list_soon()
        await until(lambda: bench.at_work == {"new"}, "the list to be followed")
        listing.cancel()

    run(scenario)


def test_each_list_tells_which_runs_there_are() -> None:
    """Those that only the watch has shown yet as well: what is kept of others can be let go of."""

    async def scenario(bench: Bench) -> None:
        told: list[set[str]] = []
        bench.put("listed")
        unlisted = bench.put("unlisted")
        bench.server.objects.pop(run_path("ns", "unlisted"))
        unlisted["metadata"]["resourceVersion"] = "1000"
        bench.runs.watched(unlisted, is_deleted=False)
        listing = bench.list_soon(lambda uids: told.append(set(uids)))
        await until(lambda: told, "the list")
        listing.cancel()

        assert told == [{"uid-listed", "uid-unlisted"}]

    run(scenario)


def test_a_run_is_reconciled_by_one_task() -> None:
    """However often it is shown; its deletion ends it, and wakes those that may have waited for it."""

    async def scenario(bench: Bench) -> None:
        first, other = bench.put("run"), bench.put("other")
        for shown in (first, other, bench.put("run")):
            bench.runs.watched(shown, is_deleted=False)
        bench.runs.watched(bench.put("run"), is_deleted=True)

        assert len(bench.made) == 2
        assert bench.at_work == {"other"}
        assert bench.made[1].num_wakes == 1

    run(scenario)


def test_a_watch_that_lags_behind_the_list_is_stale() -> None:
    """What the liveness probe asks. A watch that shows the version ends it."""

    async def scenario(bench: Bench) -> None:
        bench.runs.watched(bench.put("run"), is_deleted=False)
        newer = bench.put("run")
        listing = bench.list_soon()
        await until(lambda: bench.runs.stale_s > 0.05, "it to be stale")
        listing.cancel()
        bench.runs.watched(newer, is_deleted=False)

        assert bench.runs.stale_s < 0.05

    run(scenario)


def test_an_output_belongs_to_whoever_was_there_first() -> None:
    """Begun before the others, else older; one that has ended leaves it. An output that only looks different is the same."""

    async def scenario(bench: Bench) -> None:
        old = bench.put("old", created="2026-01-01T11:00:00Z")
        new = bench.put("new", output="./out/")
        begun = bench.put("begun", output="b", memory=ledger.to_text(Ledger(output_uri="b")))
        older = bench.put("older", output="b", created="2026-01-01T11:00:00Z")
        done = bench.put("done", output="d", created="2026-01-01T11:00:00Z", phase="Succeeded")
        next_one = bench.put("next", output="d")
        for found in (old, new, begun, older, done, next_one):
            bench.runs.watched(found, is_deleted=False)

        def rival(found: Object) -> str | None:
            uri = normalised_uri(found["spec"]["output"]["uri"])  # as the reconciler has done before it asks
            return bench.runs.rival_of(found["metadata"]["uid"], make.run({"output": {"uri": uri}}))

        assert rival(old) is None
        assert "ns/old" in str(rival(new))
        assert "ns/begun" in str(rival(older))
        assert rival(begun) is None
        assert rival(next_one) is None

    run(scenario)
