"""One run, kept as its spec wants it: observe, decide (`controller.planner`), write the status, act. Again and again.

    observe   manifests first (in a thread), then pods: an owner that no watch shows is asked for before it counts as gone
    decide    pure, from the memory in the resource's own status
    write     one patch of the status over the version that was read. Whoever is late (a second controller, an old leader)
              fails here with a conflict, before it has done anything
    act       the planner's actions, up to the first that fails; each is harmless when repeated. Shards of the dead are given
              back first, some at once; ended workers leave beside the looks that follow (`Farewells`)

Nothing that is kept in this object is needed for truth: it may die at any line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from contract import names
from contract.manifest import ShardManifest
from contract.names import Phase
from contract.plan import Plan
from contract.store.errors import StoreError
from controller import ledger
from controller.actions import Action, Decision, Finalize, ForgetWorker, KeepLog, ReleaseShard, StartWorker, StopWorker
from controller.api import InferenceRun
from controller.capacity import CapacityChoice, choose_capacity, num_open_shards
from controller.cluster import ApiUnavailable, Object, ObjectChanged, ObjectMissing
from controller.farewells import Farewells
from controller.ledger import Ledger
from controller.observation import RunKey
from controller.observed import Intent, Observed, WorkerView
from controller.opening import RunOpener
from controller.planner import FOLLOW_UP_S, plan
from controller.run_resource import Refused, RunResource
from controller.run_store import RunStore
from controller.status import status_fields
from controller.tools import Tools
from controller.worker_pods import WorkerPods

logger = logging.getLogger(__name__)

MAX_BACKOFF_S = 60.0
OVER = frozenset({Phase.SUCCEEDED.value, Phase.FAILED.value})


class RunReconciler:
    """Reconciles one run; `work` as a task until the run is gone."""

    def __init__(self, resource: Object, tools: Tools) -> None:
        """Nothing is asked before `work`."""
        self._resource = RunResource(resource, tools)
        self._opener = RunOpener(self._resource, tools)
        self._pods = WorkerPods(self._resource, tools)
        self._farewells = Farewells()
        self._tools = tools

    @property
    def key(self) -> RunKey:
        """Which run this is."""
        return self._resource.key

    @property
    def resource(self) -> Object:
        """The newest version that was seen."""
        return self._resource.current

    def saw(self, resource: Object) -> None:
        """A watch or a list has shown the run."""
        self._resource.saw(resource)

    def wake(self) -> None:
        """Something has changed that the run may have to follow."""
        self._resource.changed.set()

    def gone(self) -> None:
        """The resource is gone."""
        self._resource.gone()

    async def work(self) -> None:
        """Reconcile whenever there is reason to, until the run is gone."""
        try:
            await self._work()
        finally:
            await self._farewells.stop()
        self._tools.observation.forget_run(self.key)

    async def _work(self) -> None:
        resource = self._resource
        num_failures = 0
        while not resource.is_gone:
            resource.changed.clear()
            try:
                with self._tools.metrics.reconciling():
                    again_s = await self._turn()
                num_failures = 0
            except ObjectMissing:
                await resource.refresh()
                again_s = 0.0
            except ObjectChanged:
                await resource.refresh()
                again_s = FOLLOW_UP_S
            except (ApiUnavailable, StoreError) as error:
                num_failures += 1
                again_s = min(MAX_BACKOFF_S, 2.0**num_failures / 2)
                logger.warning("reconcile put off", extra={**resource.where, "detail": str(error), "retry_s": again_s})
            except Exception as error:  # our own mistake must not end the run, nor the other runs
                num_failures += 1
                again_s = min(MAX_BACKOFF_S, 2.0**num_failures)
                logger.exception("reconcile failed", extra={**resource.where, "retry_s": again_s})
                await resource.confess(error)
            await asyncio.sleep(self._tools.settings.min_interval_s)
            # Not wait_for: until Python 3.12 it loses a cancellation that comes together with what it waits for.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(again_s):
                    await resource.changed.wait()

    async def _turn(self) -> float | None:
        """One reconcile; returns the seconds until the next, None = only when something changes."""
        if self._resource.is_being_deleted:
            # Something keeps it, such as `--cascade=foreground` until its pods are gone: they drain, and none is started.
            return self._tools.settings.poll_s if await self._pods.stop_all(Intent.RUN_ENDED) else None
        opener = self._opener
        self._resource.begin_look()
        noted = ledger.from_status(self._resource.status)
        try:
            run = opener.parsed(noted)
            if self._is_over(run, noted) and not self._tools.observation.pods_of(self.key):
                return await self._retire(run)
            opener.refuse_rival(run)
            if await opener.must_restart(run, noted) and await self._pods.stop_all(Intent.RUN_ENDED):
                return self._tools.settings.poll_s
            noted = await opener.open(run, noted)
        except Refused as refused:
            await self._resource.refuse(noted, refused)
            return refused.retry_s
        return await self._reconcile(run, ledger.retried(noted, self._resource.retry_stamp))

    def _is_over(self, run: InferenceRun, noted: Ledger) -> bool:
        """Whether it has ended, and nobody has stepped in since: then the store need not be there any more."""
        is_unchanged = noted.memory.resource_generation == run.resource_generation
        return self._resource.phase in OVER and is_unchanged and noted.retried_for == self._resource.retry_stamp

    async def _reconcile(self, run: InferenceRun, noted: Ledger) -> float | None:
        tools, store, opened = self._tools, self._opener.store, self._opener.opened
        generation = opened.record.generation
        manifests = await self._tools.blocking(store.read_manifests, generation)
        is_finalized = _are_all_final(opened.plan, manifests) and await self._tools.blocking(
            store.is_finalized, generation
        )
        await tools.observation.confirm(
            self.key.namespace,
            {item.owner.uid: item.owner.pod for item in manifests.values() if item.owner is not None},
        )
        now = tools.now()
        workers = await tools.observation.views_of(self.key, now)
        pods = [pod for pod in tools.observation.pods_of(self.key) if pod.run_uid == self.key.uid]
        capacity = choose_capacity(
            run,
            pods,
            off_spot=noted.off_spot,
            eviction_rate=noted.memory.eviction_rate,
            num_open_shards=num_open_shards(opened.plan, manifests),
            now=now,
        )
        was_off_spot = noted.off_spot.until
        noted = replace(
            noted, off_spot=capacity.off_spot, memory=replace(noted.memory, eviction_rate=capacity.eviction_rate)
        )
        decision = await self._tools.blocking(
            lambda: plan(
                run=run,
                plan=opened.plan,
                observed=Observed(manifests=manifests, workers=workers, is_complete=True, is_finalized=is_finalized),
                memory=noted.memory,
                now=now,
            )
        )
        before = self._resource.status
        await self._resource.write_status(self._status(decision, replace(noted, memory=decision.memory)))
        self._resource.tell(before, noted.memory, decision)
        if capacity.off_spot.until != was_off_spot:
            self._resource.tell_capacity(capacity.off_spot.until)
        for pod in (*capacity.impatient, *capacity.returning):
            await self._pods.stop(pod.name, pod.uid, Intent.CHANGES_CAPACITY)
        is_done = await self._apply_all(run, decision, manifests, workers, capacity)
        again_s = decision.requeue_after_s if is_done else FOLLOW_UP_S
        if any(worker.is_live for worker in workers) or decision.actions:
            again_s = min(tools.settings.poll_s, again_s if again_s is not None else tools.settings.poll_s)
        if decision.status.phase.value in OVER and not tools.observation.pods_of(self.key):
            return 0.0  # to retire it
        return again_s

    def _status(self, decision: Decision, noted: Ledger) -> dict[str, Any]:
        status = status_fields(decision.status)
        status["memory"] = ledger.to_text(noted)
        status["workers"]["selector"] = f"{names.LABEL_RUN_UID}={self.key.uid}"
        if self._pods.trouble and not status["message"]:
            status["message"] = self._pods.trouble
        return status

    async def _apply_all(
        self,
        run: InferenceRun,
        decision: Decision,
        manifests: Mapping[int, ShardManifest],
        workers: tuple[WorkerView, ...],
        capacity: CapacityChoice,
    ) -> bool:
        """Apply the actions; False when one could not be, and the rest waits for a new look."""
        store, generation = self._opener.store, self._opener.opened.record.generation
        actions = [action for action in decision.actions if not self._is_taken_care_of(action)]
        releases = [action for action in actions if isinstance(action, ReleaseShard)]
        if releases and not await self._tools.blocking(store.release_all, releases, generation):
            return False
        by_uid = {worker.uid: worker for worker in workers}
        logs = {action.uid for action in actions if isinstance(action, KeepLog)}
        for action in actions:
            match action:
                case ForgetWorker():
                    steps = [partial(self._keep_log, action, store, generation)] if action.uid in logs else []
                    forget = partial(self._pods.forget, action, by_uid.get(action.uid))
                    self._farewells.begin(action.uid, *steps, forget=forget)
                case StopWorker():
                    await self._pods.stop(action.name, action.uid, action.intent)
                case StartWorker():
                    is_on_demand = capacity.is_on_demand(action.slot)
                    if not await self._pods.start(run, self._opener.opened, action, is_on_demand=is_on_demand):
                        return False
                case Finalize():
                    await self._tools.blocking(store.finalize, generation, manifests)
        if actions:
            logger.info(
                "reconciled",
                extra={
                    **self._resource.where,
                    "phase": decision.status.phase.value,
                    "actions": [_told(action) for action in actions],
                },
            )
        self._farewells.raise_failure()
        return True

    def _is_taken_care_of(self, action: Action) -> bool:
        """Whether the worker is on its way out, or has gone since it was looked at."""
        if not isinstance(action, KeepLog | ForgetWorker):
            return False
        return action.uid in self._farewells or not self._tools.observation.is_to_be_noted(action.uid)

    async def _keep_log(self, worker: ForgetWorker, store: RunStore, generation: int) -> None:
        content = await self._pods.log_tail(worker.name)
        if content:
            keep = partial(store.keep_log, pod=worker.name, uid=worker.uid, content=content)
            await self._tools.blocking(keep, generation)

    async def _retire(self, run: InferenceRun) -> float | None:
        """The run has ended and its pods are gone: delete it when its time is over."""
        self._opener.close()
        if run.spec.ttl_after_finished_s is None:
            return None
        ended_at = self._resource.ended_at()
        if ended_at is None:
            return None
        left_s = (ended_at + timedelta(seconds=run.spec.ttl_after_finished_s) - self._tools.now()).total_seconds()
        if left_s > 0:
            return left_s
        await self._resource.delete()
        return self._tools.settings.poll_s


def _are_all_final(shards: Plan, manifests: Mapping[int, ShardManifest]) -> bool:
    return all(item.shard in manifests and manifests[item.shard].is_final for item in shards.shards)


def _told(action: Action) -> str:
    """An action in a few words, for the log."""
    match action:
        case StartWorker():
            return f"start {action.name}"
        case StopWorker():
            return f"stop {action.name} ({action.intent})"
        case ReleaseShard():
            return f"release shard {action.shard} of {action.attempt.pod} ({action.attempt.failure_class})"
        case KeepLog():
            return f"keep the log of {action.name}"
        case ForgetWorker():
            return f"forget {action.name}"
        case Finalize():
            return "finalize"
