"""Entry point of the controller: settings, leadership, watches, kopf; then it waits until something ends it.

Exit codes: 0 after SIGTERM; 1 when leadership was lost or a part of it ended (its pod starts it anew); 64 for settings
that cannot be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from contract import logs
from contract.errors import SpecError
from controller import settings as controller_settings
from controller.cluster import Cluster, Object, connection
from controller.events import EventRecorder
from controller.handlers import operator
from controller.health import serve
from controller.leader import Leader, LeadershipLost
from controller.observation import Observation
from controller.reconciler import RunReconciler, Tools
from controller.runs import Runs
from controller.settings import Settings
from controller.token_bucket import TokenBucket

logger = logging.getLogger("controller")

NAME = "inferencerun-operator"


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
    for chatty in ("botocore", "boto3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    cluster = Cluster(connection, writes=TokenBucket(settings.api_qps, settings.api_burst), name=NAME)
    # Renewals must not queue behind the creation of hundreds of pods.
    lease_cluster = Cluster(connection, writes=TokenBucket(10, 10), name=NAME)
    leader = Leader(lease_cluster, settings, now=_now)
    with ThreadPoolExecutor(settings.store_threads, thread_name_prefix="store") as executor:
        part = _Part(settings, cluster, leader, executor, stop)
        probes = await serve(
            address=settings.health_address,
            port=settings.health_port,
            is_ready=part.is_ready,
            ages_s=part.ages_s,
            limit_s=settings.stale_watch_s,
        )
        try:
            return await part.work()
        finally:
            logger.info("ended", extra={"requests": cluster.num_requests})
            await leader.give_up()
            await probes.cleanup()
            await cluster.close()
            await lease_cluster.close()
            executor.shutdown(wait=False, cancel_futures=True)


class _Part:
    """What a controller does once it leads, and what its probes say."""

    def __init__(
        self, settings: Settings, cluster: Cluster, leader: Leader, executor: ThreadPoolExecutor, stop: asyncio.Event
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._leader = leader
        self._stop = stop
        self._runs = runs = Runs(make=self._reconciler)
        self._observation = Observation(cluster, namespace=settings.watch_namespace, wake=runs.wake)
        self._tools = Tools(
            cluster=cluster,
            observation=self._observation,
            events=EventRecorder(cluster, component=NAME, now=_now),
            settings=settings,
            executor=executor,
            now=_now,
            new_id=lambda: uuid.uuid4().hex,  # noqa: TID251  (the edge: ids are made here)
            rival_of=runs.rival_of,
        )

    def is_ready(self) -> bool:
        """Whether it leads and sees, or waits to lead."""
        return not self._leader.is_leading or self._observation.pods.synced.is_set()

    def ages_s(self) -> dict[str, float]:
        """Seconds of silence of each watch."""
        if not self._leader.is_leading:
            return {}
        return {"pods": self._observation.pods.silent_s, "runs": self._runs.stale_s}

    async def work(self) -> int:
        """Lead, and reconcile until stopped; returns the exit code."""
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        acquiring = asyncio.create_task(self._leader.acquire(), name="acquire")
        await asyncio.wait((stopping, acquiring), return_when=asyncio.FIRST_COMPLETED)
        if self._stop.is_set():
            acquiring.cancel()
            return 0
        leading = asyncio.create_task(self._leader.keep(), name="lease")
        tasks = [stopping, leading, *self._observation.tasks()]
        try:
            synced = asyncio.create_task(self._observation.pods.synced.wait(), name="first list of pods")
            await asyncio.wait((stopping, leading, synced), return_when=asyncio.FIRST_COMPLETED)
            synced.cancel()
            tasks.append(asyncio.create_task(self._runs.keep_listed(self._cluster, self._settings.watch_namespace)))
            tasks.append(
                operator(self._runs, connect=connection, namespace=self._settings.watch_namespace, stop=self._stop)
            )
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._runs.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        # kopf takes the signal handlers, and ends in good order upon a signal.
        if self._stop.is_set() or any(task.get_name() == "kopf" and task.exception() is None for task in done):
            return 0
        for task in done:
            error = task.exception()
            kind = logging.WARNING if isinstance(error, LeadershipLost) else logging.ERROR
            logger.log(kind, "controller ends", extra={"part": task.get_name(), "detail": repr(error)})
        return 1

    def _reconciler(self, resource: Object) -> RunReconciler:
        return RunReconciler(resource, self._tools)


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  (the edge: the clock is read here)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
