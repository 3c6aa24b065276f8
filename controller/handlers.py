"""kopf, set up for runs alone: it watches them and tells `Runs`. No handler writes, so kopf annotates nothing."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import kopf

from contract.names import API_GROUP, API_VERSION
from controller.cluster import RUNS
from controller.runs import Runs


class _Backoffs:
    """Waits between tries of kopf's own requests: without end.

    By default kopf gives up after nine tries, about a minute, and then its watch ends for good.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1, 2, 3, 5), itertools.repeat(10))


def operator(
    runs: Runs,
    *,
    connect: Callable[[], kopf.ConnectionInfo],
    namespace: str,
    stop: asyncio.Event,
    take_signals: Callable[[], None],
) -> asyncio.Task[None]:
    """Start kopf's operator.

    Args:
        runs: told of every change of a run.
        connect: gives address and credentials; asked again when they are refused.
        namespace: of the runs; empty = all.
        stop: ends it.
        take_signals: handles SIGTERM again, once kopf has taken it: a kopf that is being cancelled would lose it.
    """
    registry = kopf.OperatorRegistry()
    settings = kopf.OperatorSettings()
    settings.networking.error_backoffs = _Backoffs()
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 5
    settings.watching.server_timeout = 270
    settings.watching.connect_timeout = 5
    settings.posting.enabled = False
    settings.scanning.disabled = (
        True  # the CRD is there before the controller, and looking for others needs more rights
    )
    settings.process.ultimate_exiting_timeout = None
    logging.getLogger("kopf").setLevel(logging.WARNING)

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connect()

    @kopf.on.event(API_GROUP, API_VERSION, RUNS, registry=registry)
    async def saw(event: Any, **_: Any) -> None:
        runs.watched(dict(event["object"]), is_deleted=event["type"] == "DELETED")

    async def work() -> None:
        others = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=not namespace,
            namespaces=[namespace] if namespace else [],
            stop_flag=stop,
        )
        take_signals()
        await kopf.run_tasks(tasks, ignored=others)

    return asyncio.create_task(work(), name="kopf")
