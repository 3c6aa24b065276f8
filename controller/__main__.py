"""Entry point of the controller: settings, leadership, watches, kopf; then it waits until something ends it.

A controller that loses the Lease drops what it knows, and waits to lead again. Exit codes: 0 after SIGTERM; 1 when a part
of it ended (its pod starts it anew); 64 for settings that cannot be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from contract import logs
from contract.errors import SpecError
from controller import settings as controller_settings
from controller.cluster import Cluster, Object, connection
from controller.events import EventRecorder
from controller.handlers import operator
from controller.health import serve
from controller.leader import Leader
from controller.metrics import ControllerMetrics
from controller.observation import Observation
from controller.pods import PodFacts
from controller.reconciler import RunReconciler
from controller.replacements import Replacements
from controller.runs import Runs
from controller.settings import Settings
from controller.token_bucket import TokenBucket
from controller.tools import Tools

logger = logging.getLogger("controller")

NAME = "inferencerun-operator"
HEALTH_PORT = "INFERENCERUN_CONTROLLER_HEALTH_PORT"
GIVE_UP_S = 3.0
"""For leaving the Lease at the end: whoever is next waits a little longer otherwise."""


def main() -> int:
    """Run one controller to its end; returns its exit code."""
    logs.configure(component="controller")
    try:
        settings = controller_settings.from_environment()
        connection()
    except SpecError as error:
        logger.error("cannot start", extra={"detail": str(error)})  # noqa: TRY400  (the user's mistake, not ours)
        return int(error.exit_code)
    logging.getLogger().setLevel(settings.log_level)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    metrics = ControllerMetrics()
    writes = TokenBucket(settings.api_qps, settings.api_burst)
    async with contextlib.AsyncExitStack() as stack:
        cluster = Cluster(connection, writes=writes, name=NAME, observe=metrics.requested)
        stack.push_async_callback(cluster.close)
        # Renewals must not queue behind the creation of hundreds of pods.
        lease_cluster = Cluster(connection, writes=TokenBucket(10, 10), name=NAME, observe=metrics.requested)
        stack.push_async_callback(lease_cluster.close)
        executor = stack.enter_context(ThreadPoolExecutor(settings.store_threads, thread_name_prefix="store"))
        process = _Process(settings, cluster, Leader(lease_cluster, settings, now=_now), executor, metrics)
        metrics.show(
            runs=process.resources, is_leading=lambda: process.leader.is_leading, ages_s=process.ages_s, now=_now
        )
        try:
            probes = await serve(
                address=settings.health_address,
                port=settings.health_port,
                is_ready=process.is_ready,
                ages_s=process.ages_s,
                limit_s=settings.stale_watch_s,
                metrics=metrics.text,
            )
        except OSError as error:
            detail = (
                f"{HEALTH_PORT} {settings.health_port}: {error}; choose a free one (controller.healthPort of the chart)"
            )
            logger.error("cannot start", extra={"detail": detail})  # noqa: TRY400  (the words are the system's, and enough)
            return 1
        try:
            return await process.work()
        finally:
            logger.info("ended", extra={"requests": cluster.num_requests})
            with contextlib.suppress(TimeoutError):  # it is a courtesy
                await asyncio.wait_for(process.leader.give_up(), GIVE_UP_S)
            await probes.cleanup()
            executor.shutdown(wait=False, cancel_futures=True)


class _Process:
    """Leads, term after term, until it is told to stop; and what its probes say."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        leader: Leader,
        executor: ThreadPoolExecutor,
        metrics: ControllerMetrics,
    ) -> None:
        self.leader = leader
        self._metrics = metrics
        self._settings = settings
        self._cluster = cluster
        self._executor = executor
        self._stop = asyncio.Event()
        self._term: _Term | None = None

    def is_ready(self) -> bool:
        """Whether it leads and sees, or waits to lead."""
        return self._term is None or self._term.sees

    def ages_s(self) -> dict[str, float]:
        """Seconds of silence of each watch."""
        if self._term is None:
            return {}
        runs = {"runs": self._term.runs.stale_s} if self._term.runs.is_defined else {}
        return {"pods": self._term.observation.pods.silent_s, **runs}

    def resources(self) -> list[Object]:
        """The runs that it works on; none while another one leads."""
        return [] if self._term is None else self._term.runs.resources()

    async def work(self) -> int:
        """Lead whenever it can; returns the exit code."""
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        while True:
            self._take_signals()
            acquiring = asyncio.create_task(self.leader.acquire(), name="acquire")
            await asyncio.wait((stopping, acquiring), return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                acquiring.cancel()
                return 0
            self._term = _Term(self._settings, self._cluster, self._executor, self._metrics)
            leading = asyncio.create_task(self.leader.keep(), name="lease")
            try:
                ended = await self._term.work(stopping, leading, self._stop, self._take_signals)
            finally:
                self._term = None
            if self._stop.is_set():
                return 0
            if ended is not leading:
                logger.error("controller ends", extra={"part": ended.get_name(), "detail": repr(ended.exception())})
                return 1
            # With the API server away nobody leads; once it is back whoever comes first does, from a fresh look.
            logger.warning("no longer leading", extra={"detail": str(ended.exception())})

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)


class _Term:
    """One time of leadership, with caches of its own: those of an earlier one may be out of date."""

    def __init__(
        self, settings: Settings, cluster: Cluster, executor: ThreadPoolExecutor, metrics: ControllerMetrics
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._metrics = metrics
        self._replacements = Replacements()
        self.runs = Runs(make=self._reconciler)
        self.observation = Observation(
            cluster,
            namespace=settings.watch_namespace,
            wake=self._pod_changed,
            watches_nodes=settings.watch_nodes,
        )
        self._tools = Tools(
            cluster=cluster,
            observation=self.observation,
            events=EventRecorder(cluster, component=NAME, now=_now),
            settings=settings,
            metrics=metrics,
            executor=executor,
            now=_now,
            new_id=lambda: uuid.uuid4().hex,  # noqa: TID251  (the edge: ids are made here)
            rival_of=self.runs.rival_of,
        )

    async def work(
        self,
        stopping: asyncio.Task[Any],
        leading: asyncio.Task[None],
        stop: asyncio.Event,
        take_signals: Callable[[], None],
    ) -> asyncio.Task[Any]:
        """Reconcile until something ends; returns what did."""
        tasks: list[asyncio.Task[Any]] = [leading, *self.observation.tasks()]
        seeing = asyncio.create_task(self._see(), name="first look")
        namespace = self._settings.watch_namespace
        try:
            done, _ = await asyncio.wait((stopping, *tasks, seeing), return_when=asyncio.FIRST_COMPLETED)
            done.discard(seeing)
            if not done:
                listing = self.runs.keep_listed(self._cluster, namespace, tell=self.observation.forget_runs_but)
                tasks.append(asyncio.create_task(listing, name="list of runs"))
                kopf = operator(
                    self.runs, connect=connection, namespace=namespace, stop=stop, take_signals=take_signals
                )
                tasks.append(kopf)
                done, _ = await asyncio.wait((stopping, *tasks), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self.runs.stop()
            for task in (*tasks, seeing):
                task.cancel()
            await asyncio.gather(*tasks, seeing, return_exceptions=True)
        return next(iter(done))

    @property
    def sees(self) -> bool:
        """Whether it knows what there is."""
        return self.observation.pods.synced.is_set() and self.runs.is_defined

    async def _see(self) -> None:
        """Return once pods have been listed, and runs can be."""
        await self.observation.pods.synced.wait()
        await self.runs.wait_until_defined(self._cluster)

    def _pod_changed(self, pod: PodFacts) -> None:
        self.runs.wake(pod)
        if self.observation.pods.synced.is_set():  # the first list tells ends and replacements at one time
            for stage, seconds in self._replacements.saw(pod, at_s=time.monotonic()):
                self._metrics.replaced(stage, seconds)

    def _reconciler(self, resource: Object) -> RunReconciler:
        return RunReconciler(resource, self._tools)


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  (the edge: the clock is read here)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
