"""One run under a real reconciler, over HTTP to `api_server`, with a store in a directory and a clock that tests move."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from contract.store.local import LocalStore
from controller.cluster import Cluster, Object, core_path, run_path
from controller.events import EventRecorder
from controller.metrics import ControllerMetrics
from controller.observation import Observation
from controller.pods import PodFacts
from controller.reconciler import RunReconciler
from controller.settings import Settings
from controller.token_bucket import TokenBucket
from controller.tools import Tools
from tests import make
from tests.controller.api_server import ApiServer, serving

PATIENCE_S = 60.0
NAMESPACE = "ns"
RUN = run_path(NAMESPACE, "run")
PODS = core_path(NAMESPACE, "pods")


@dataclass
class Bench:
    """What a test needs to see and to change."""

    server: ApiServer
    reconciler: RunReconciler
    store: LocalStore
    metrics: ControllerMetrics
    now: datetime = make.NOW

    @property
    def status(self) -> dict[str, Any]:
        """The run's status, as the server has it."""
        found: dict[str, Any] = self.server.objects[RUN].get("status") or {}
        return found

    @property
    def pods(self) -> list[Object]:
        """All pods."""
        return self.server.of_kind("pods")

    @property
    def pods_known(self) -> list[PodFacts]:
        """Pods that the controller has not forgotten, those that are gone included."""
        return self.reconciler._tools.observation.pods_of(self.reconciler.key)

    def pod(self, name: str) -> Object:
        """One pod."""
        return self.server.objects[f"{PODS}/{name}"]

    def sleep(self, seconds: float) -> None:
        """Move the clock, and let the reconciler look."""
        self.now += timedelta(seconds=seconds)
        self.reconciler.wake()

    def change(self, path: str, **parts: Any) -> None:
        """Replace top-level parts of an object, as somebody else would."""
        body = self.server.put(path, {**self.server.objects[path], **parts})
        if path == RUN:
            self.reconciler.saw(body)

    def run_pod(self, name: str, *, node: str = "node-a") -> None:
        """What scheduler and kubelet write once its worker runs."""
        found = self.pod(name)
        state = {"name": "worker", "state": {"running": {"startedAt": "2026-01-01T12:00:00Z"}}}
        status = {"phase": "Running", "containerStatuses": [state]}
        self.change(f"{PODS}/{name}", spec={**found["spec"], "nodeName": node}, status=status)

    def end_pod(self, name: str, **terminated: Any) -> None:
        """What a kubelet writes when its worker has ended."""
        state = {"startedAt": "2026-01-01T12:00:00Z", "finishedAt": "2026-01-01T12:00:10Z", **terminated}
        status = {"phase": "Failed", "containerStatuses": [{"name": "worker", "state": {"terminated": state}}]}
        self.change(f"{PODS}/{name}", status=status)

    async def until(self, look: Callable[[], Any], what: str) -> Any:
        """The first true value of `look`."""
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while not (found := look()):
            assert asyncio.get_running_loop().time() < deadline_s, f"waited for {what}; {self.status}"
            await asyncio.sleep(0.01)
        return found


@asynccontextmanager
async def bench(
    directory: Path, changes: dict[str, Any] | None = None, *, is_working: bool = True
) -> AsyncIterator[Bench]:
    """A run of two records in two shards, and a reconciler at work on it.

    Args:
        directory: for input and output.
        changes: to the spec.
        is_working: False = `reconciler.work` is left to the test.
    """
    (directory / "in.fasta").write_text(">a\nMKV\n>b\nMKL\n")
    (directory / "out").mkdir()
    spec = {
        "input": {"uris": [str(directory / "in.fasta")], "shardBytes": 8},
        "output": {"uri": str(directory / "out")},
        **(changes or {}),
    }
    async with serving() as server:
        metrics = ControllerMetrics()
        cluster = Cluster(server.connect, writes=TokenBucket(1000, 1000), name="test", observe=metrics.requested)
        ids = itertools.count()
        made: list[RunReconciler] = []
        observation = Observation(cluster, namespace="", wake=lambda _pod: made[0].wake())
        with ThreadPoolExecutor(4) as executor:
            tools = Tools(
                cluster=cluster,
                observation=observation,
                events=EventRecorder(cluster, component="test", now=lambda: found.now),
                settings=Settings(worker_image="image", min_interval_s=0.001, poll_s=0.05),
                metrics=metrics,
                executor=executor,
                now=lambda: found.now,
                new_id=lambda: f"id-{next(ids)}",
                rival_of=lambda _uid, _run: None,
            )
            ready = {"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
            server.put(core_path("", "nodes", "node-a"), ready)
            resource = server.put(RUN, make.resource(spec))
            made.append(RunReconciler(resource, tools))
            found = Bench(server, made[0], LocalStore(directory / "out"), metrics)
            tasks = observation.tasks()
            await observation.pods.synced.wait()
            await observation.nodes.synced.wait()
            if is_working:
                tasks.append(asyncio.create_task(made[0].work()))
            try:
                yield found
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await cluster.close()
