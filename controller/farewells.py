"""Ended workers of one run on their way out, beside its reconciles: their logs kept, their pods deleted.

A kubelet that is slow to give a log, or hundreds of pods to delete, keep no replacement waiting. Each worker is on its way
once; whatever fails is told to the next reconcile, which sees that worker still there and decides afresh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

Step = Callable[[], Awaitable[None]]


class Farewells:
    """For one event loop; `stop` it at the end."""

    def __init__(self) -> None:
        """Nobody leaves yet."""
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None
        self._forgetting = asyncio.Lock()
        """Pods go one by one: with a limit on writes, many at once would leave little of it to those that are created."""

    def __contains__(self, uid: str) -> bool:
        """Whether this worker is on its way out."""
        return uid in self._leaving

    def begin(self, uid: str, *steps: Step, forget: Step) -> None:
        """Take the steps in order, then forget the worker; nothing when it is on its way."""
        if uid not in self._leaving:
            task = asyncio.create_task(self._leave(*steps, forget=forget), name=f"farewell {uid}")
            self._leaving[uid] = task
            task.add_done_callback(lambda done: self._left(uid, done))

    def raise_failure(self) -> None:
        """Raise what the last failed with since this was asked before; nothing when all went well."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def stop(self) -> None:
        """Leave the rest to whoever comes next."""
        tasks = list(self._leaving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self, *steps: Step, forget: Step) -> None:
        for step in steps:
            await step()
        async with self._forgetting:
            await forget()

    def _left(self, uid: str, done: asyncio.Task[None]) -> None:
        del self._leaving[uid]
        if not done.cancelled() and (failure := done.exception()) is not None:
            self._failure = failure
