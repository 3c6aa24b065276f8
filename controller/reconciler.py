"""One run, kept as its spec wants it: observe, decide (`controller.planner`), write the status, act. Again and again.

    observe   manifests first (in a thread), then pods: an owner that no watch shows is asked for before it counts as gone
    decide    pure, from the memory in the resource's own status
    write     one patch of the status over the version that was read. Whoever is late (a second controller, an old leader)
              fails here with a conflict, before it has done anything
    act       the planner's actions in order, up to the first that fails; each is harmless when repeated

Nothing that is kept in this object is needed for truth: it may die at any line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from contract import names, settings
from contract.errors import Corrupt, IncompatibleRun, NewerFormat, SpecError
from contract.manifest import ShardManifest, parse_stamp
from contract.names import ConditionType, Phase
from contract.plan import Plan
from contract.store.commit import Committer
from contract.store.errors import AccessDenied, StoreError, UnsuitableStore
from contract.store.inputs import list_inputs
from contract.store.open import normalised_uri, open_store
from controller import api, codec, ledger
from controller.actions import Action, Decision, Finalize, ForgetWorker, ReleaseShard, StartWorker, StopWorker
from controller.api import InferenceRun, Resume
from controller.capacity import granted, impatient
from controller.cluster import (
    ApiError,
    ApiUnavailable,
    Cluster,
    Object,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    core_path,
    run_path,
)
from controller.conditions import Condition, merged
from controller.events import EventRecorder
from controller.ledger import Ledger
from controller.memory import RunMemory
from controller.observation import Observation, RunKey
from controller.observed import Intent, Observed, WorkerView
from controller.planner import FOLLOW_UP_S, plan
from controller.pod_template import build_pod, grace_period_s
from controller.run_store import OpenedRun, RunStore, wanted_record
from controller.settings import Settings
from controller.status import status_fields
from controller.watches import is_newer

logger = logging.getLogger(__name__)

REFUSED_S = 60.0
"""Until an input, a bucket or a rival that stood in the way is looked at again; a changed spec is looked at once."""
MAX_BACKOFF_S = 60.0
OVER = frozenset({Phase.SUCCEEDED.value, Phase.FAILED.value})
_PERMANENT = (SpecError, IncompatibleRun, Corrupt, NewerFormat, AccessDenied, UnsuitableStore)
"""What opening a run may meet that time alone does not mend."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What all runs share."""

    cluster: Cluster
    observation: Observation
    events: EventRecorder
    settings: Settings
    executor: Executor
    """For what blocks: stores, and long decisions."""
    now: Callable[[], datetime]
    new_id: Callable[[], str]
    rival_of: Callable[[str, InferenceRun], str | None]
    """Who else works on the output of the run with this uid: a sentence, or None."""


class _Refused(Exception):
    """The run cannot go on until a person, or time, changes something: said in a condition; its pods are left alone."""

    def __init__(self, kind: ConditionType, reason: str, message: str, *, retry_s: float | None) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.message = message
        self.retry_s = retry_s


class RunReconciler:
    """Reconciles one run; `work` as a task until the run is gone."""

    def __init__(self, resource: Object, tools: Tools) -> None:
        """Nothing is asked before `work`."""
        self._resource = resource
        self._tools = tools
        self._wake = asyncio.Event()
        self._wake.set()
        self._is_gone = False
        self._store: RunStore | None = None
        self._opened: OpenedRun | None = None
        self._opened_for: int | None = None
        """metadata.generation that `_opened` belongs to."""
        self._on_demand: frozenset[int] = frozenset()
        """Places whose next pod is started on demand."""
        self._trouble = ""
        """Why the last pod could not be created; empty when it could."""

    @property
    def key(self) -> RunKey:
        """Which run this is."""
        metadata = self._resource["metadata"]
        return RunKey(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])

    @property
    def resource(self) -> Object:
        """The newest version that was seen."""
        return self._resource

    def saw(self, resource: Object) -> None:
        """A watch or a list has shown the run."""
        before, after = self._resource["metadata"], resource["metadata"]
        if not is_newer(after["resourceVersion"], before["resourceVersion"]):
            return
        self._resource = resource
        # Our own status writes come back here, and must not wake us for ever.
        if any(before.get(name) != after.get(name) for name in ("generation", "deletionTimestamp", "labels")):
            self._wake.set()

    def wake(self) -> None:
        """Something has changed that the run may have to follow."""
        self._wake.set()

    def gone(self) -> None:
        """The resource is gone."""
        self._is_gone = True
        self._wake.set()

    async def work(self) -> None:
        """Reconcile whenever there is reason to, until the run is gone."""
        num_failures = 0
        while not self._is_gone:
            self._wake.clear()
            try:
                again_s = await self._turn()
                num_failures = 0
            except ObjectMissing:
                await self._refresh()
                again_s = 0.0
            except ObjectChanged:
                await self._refresh()
                again_s = FOLLOW_UP_S
            except (ApiUnavailable, StoreError) as error:
                num_failures += 1
                again_s = min(MAX_BACKOFF_S, 2.0**num_failures / 2)
                logger.warning("reconcile put off", extra={**self._where(), "detail": str(error), "retry_s": again_s})
            except Exception as error:  # our own mistake must not end the run, nor the other runs
                num_failures += 1
                again_s = min(MAX_BACKOFF_S, 2.0**num_failures)
                logger.exception("reconcile failed", extra={**self._where(), "retry_s": again_s})
                await self._confess(error)
            await asyncio.sleep(self._tools.settings.min_interval_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), again_s)
        self._tools.observation.forget_run(self.key)

    async def _turn(self) -> float | None:
        """One reconcile; returns the seconds until the next, None = only when something changes."""
        tools, metadata = self._tools, self._resource["metadata"]
        if metadata.get("deletionTimestamp"):
            return await self._drain_for_deletion()
        noted = ledger.from_status(self._resource.get("status") or {})
        try:
            run = self._parsed(noted)
            if self._is_over(run, noted) and not tools.observation.pods_of(self.key):
                return await self._retire(run)
            self._refuse_rival(run)
            if self._must_restart(run, noted) and await self._stop_all(Intent.RUN_ENDED):
                return tools.settings.poll_s
            noted = await self._open(run, noted)
        except _Refused as refused:
            await self._refuse(noted, refused)
            return refused.retry_s
        return await self._reconcile(run, noted)

    def _parsed(self, noted: Ledger) -> InferenceRun:
        """The run, its output normalised; raises _Refused."""
        try:
            run = api.parse_run(self._resource)
            uri = normalised_uri(run.spec.output.uri)
        except SpecError as error:
            raise _Refused(ConditionType.ACCEPTED, "Invalid", str(error), retry_s=None) from error
        if noted.output_uri and noted.output_uri != uri:
            message = f"spec.output.uri: cannot change once the run has started on {noted.output_uri}; make another run"
            raise _Refused(ConditionType.ACCEPTED, "Immutable", message, retry_s=None)
        return replace(run, spec=replace(run.spec, output=replace(run.spec.output, uri=uri)))

    def _refuse_rival(self, run: InferenceRun) -> None:
        rival = self._tools.rival_of(self.key.uid, run)
        if rival is not None:
            raise _Refused(ConditionType.ACCEPTED, "OutputInUse", rival, retry_s=REFUSED_S)

    def _is_over(self, run: InferenceRun, noted: Ledger) -> bool:
        """Whether it has ended, and nobody has changed the spec since: then the store need not be there any more."""
        phase = (self._resource.get("status") or {}).get("phase")
        return phase in OVER and noted.memory.resource_generation == run.resource_generation

    def _must_restart(self, run: InferenceRun, noted: Ledger) -> bool:
        return run.spec.resume is Resume.RESTART and noted.restarted_for != run.resource_generation

    async def _open(self, run: InferenceRun, noted: Ledger) -> Ledger:
        """Open the run in its store, once for each version of the spec; raises _Refused."""
        if self._opened is not None and self._opened_for == run.resource_generation:
            return noted
        restarts = self._must_restart(run, noted)
        try:
            if self._store is None:
                self._store = RunStore(Committer(open_store(run.spec.output.uri)), new_id=self._tools.new_id)
            if restarts:
                noted = await self._begin_restart(self._store, noted)
            store, uid = self._store, self.key.uid
            opened = await self._blocking(lambda: _opened(run, store, uid, noted, restarts=restarts))
        except _PERMANENT as error:
            kind = ConditionType.ACCEPTED if isinstance(error, (SpecError, IncompatibleRun)) else ConditionType.PLANNED
            raise _Refused(kind, type(error).__name__, str(error), retry_s=REFUSED_S) from error
        except StoreError as error:
            raise _Refused(ConditionType.PLANNED, "StoreUnavailable", str(error), retry_s=REFUSED_S / 6) from error
        self._opened, self._opened_for = opened, run.resource_generation
        if restarts:
            fresh = RunMemory(conditions=noted.memory.conditions)
            noted = replace(noted, memory=fresh, restarted_for=run.resource_generation, restart_from=None)
        return replace(noted, output_uri=run.spec.output.uri, store_generation=opened.record.generation)

    async def _begin_restart(self, store: RunStore, noted: Ledger) -> Ledger:
        """Note which generation is left before the next one is opened: a crash in between must not open two."""
        if noted.restart_from is not None:
            return noted
        record = await self._blocking(store.read_record)
        if record is None:
            return noted
        noted = replace(noted, restart_from=record.generation)
        await self._write_status({"memory": ledger.to_text(noted)})
        return noted

    async def _reconcile(self, run: InferenceRun, noted: Ledger) -> float | None:
        tools, store, opened = self._tools, self._store, self._opened
        assert store is not None, "opened before"
        assert opened is not None, "opened before"
        generation = opened.record.generation
        manifests = await self._blocking(store.read_manifests, generation)
        is_finalized = _are_all_final(opened.plan, manifests) and await self._blocking(store.is_finalized, generation)
        await tools.observation.confirm(
            self.key.namespace,
            {item.owner.uid: item.owner.pod for item in manifests.values() if item.owner is not None},
        )
        now = tools.now()
        workers = await tools.observation.views_of(self.key, now)
        pods = [pod for pod in tools.observation.pods_of(self.key) if pod.run_uid == self.key.uid]
        waiting = impatient(run, pods, noted.on_demand, now=now)
        noted = replace(noted, on_demand=granted(noted.on_demand, pods, waiting))
        decision = await self._blocking(
            lambda: plan(
                run=run,
                plan=opened.plan,
                observed=Observed(manifests=manifests, workers=workers, is_complete=True, is_finalized=is_finalized),
                memory=noted.memory,
                now=now,
            )
        )
        if any(isinstance(action, StartWorker) for action in decision.actions):
            await self._hold_until_drained()
        before = self._resource.get("status") or {}
        await self._write_status(self._status(decision, replace(noted, memory=decision.memory)))
        self._tell(before, noted.memory, decision)
        for pod in waiting:
            await self._stop(pod.name, pod.uid, Intent.SCALE_DOWN)
        self._on_demand = frozenset(noted.on_demand)
        is_done = await self._apply_all(run, decision, manifests, workers)
        again_s = decision.requeue_after_s if is_done else FOLLOW_UP_S
        if any(worker.is_live for worker in workers) or decision.actions:
            again_s = min(tools.settings.poll_s, again_s if again_s is not None else tools.settings.poll_s)
        if decision.status.phase.value in OVER and not tools.observation.pods_of(self.key):
            return 0.0  # to let go of it
        return again_s

    def _status(self, decision: Decision, noted: Ledger) -> dict[str, Any]:
        status = status_fields(decision.status)
        status["memory"] = ledger.to_text(noted)
        status["workers"]["selector"] = f"{names.LABEL_RUN_UID}={self.key.uid}"
        if self._trouble and not status["message"]:
            status["message"] = self._trouble
        return status

    async def _apply_all(
        self,
        run: InferenceRun,
        decision: Decision,
        manifests: Mapping[int, ShardManifest],
        workers: tuple[WorkerView, ...],
    ) -> bool:
        """Apply the actions in order; False when one could not be, and the rest waits for a new look."""
        by_uid = {worker.uid: worker for worker in workers}
        for action in decision.actions:
            if not await self._apply(run, action, manifests, by_uid):
                return False
        if decision.actions:
            logger.info(
                "reconciled",
                extra={
                    **self._where(),
                    "phase": decision.status.phase.value,
                    "actions": [_told(action) for action in decision.actions],
                },
            )
        return True

    async def _apply(
        self,
        run: InferenceRun,
        action: Action,
        manifests: Mapping[int, ShardManifest],
        workers: Mapping[str, WorkerView],
    ) -> bool:
        store, opened = self._store, self._opened
        assert store is not None, "opened before"
        assert opened is not None, "opened before"
        match action:
            case StartWorker():
                return await self._start(run, opened, action)
            case StopWorker():
                await self._stop(action.name, action.uid, action.intent)
            case ReleaseShard():
                return await self._blocking(store.release, action, opened.record.generation)
            case ForgetWorker():
                await self._forget(action, workers.get(action.uid))
            case Finalize():
                await self._blocking(store.finalize, opened.record.generation, manifests)
        return True

    async def _start(self, run: InferenceRun, opened: OpenedRun, action: StartWorker) -> bool:
        """Create the pod; one of that name which is this run's own counts as created."""
        tools, key = self._tools, self.key
        # The name in run.json, which checkpoints carry: a run may be resumed under another name.
        options = api.worker_settings(
            replace(run, name=opened.record.name),
            generation=opened.record.generation,
            run_uid=opened.record.uid,
            worker_index=action.slot,
            num_workers=max(1, run.spec.workers.count),
            grace_seconds=grace_period_s(run),
        )
        pod = build_pod(
            run,
            name=action.name,
            namespace=key.namespace,
            slot=action.slot,
            attempt=action.attempt,
            resource_uid=key.uid,
            generation=opened.record.generation,
            settings_json=settings.to_json(options),
            image=tools.settings.worker_image,
            image_pull_policy=tools.settings.worker_image_pull_policy or None,
            service_account=tools.settings.worker_service_account or None,
            avoid_nodes=action.avoid_nodes,
            is_on_demand=action.slot in self._on_demand,
            run_labels=self._resource["metadata"].get("labels") or {},
        )
        try:
            created = await tools.cluster.create(core_path(key.namespace, "pods"), pod)
        except ObjectExists:
            path = core_path(key.namespace, "pods", action.name)
            try:
                created = await tools.cluster.get(path)
            except ObjectMissing:
                return False  # it has just gone: once more
            if (created["metadata"].get("labels") or {}).get(names.LABEL_RUN_UID) != key.uid:
                self._complain(f"pod {action.name} belongs to somebody else; it is waited for")
                return False
        except (ApiUnavailable, ObjectChanged):
            raise
        except ApiError as error:
            # Quota, an admission policy, a template that the server does not take: no pod, so no evidence but this.
            self._complain(f"pod {action.name} cannot be created: {error.message}")
            return False
        self._trouble = ""
        tools.observation.put(created)
        return True

    def _complain(self, message: str) -> None:
        if message != self._trouble:
            self._trouble = message
            logger.warning("pod not created", extra={**self._where(), "detail": message})
            self._tools.events.emit(self._resource, "FailedCreate", message, is_warning=True)

    async def _stop(self, name: str, uid: str, intent: Intent) -> None:
        """Record why, then delete with the pod's own grace period: the worker drains."""
        path = core_path(self.key.namespace, "pods", name)
        note = {"metadata": {"uid": uid, "annotations": {names.ANNOTATION_INTENT: intent.value}}}
        try:
            self._tools.observation.put(await self._tools.cluster.patch(path, note))
        except (ObjectMissing, ObjectChanged):
            return  # it is gone, or another has its name
        await self._tools.cluster.delete(path, uid=uid)

    async def _forget(self, action: ForgetWorker, worker: WorkerView | None) -> None:
        """Delete an ended pod. One whose node cannot be reached would stay for ever: its object is deleted at once."""
        observation = self._tools.observation
        pod = observation.pod(action.uid)
        if pod is not None and not pod.is_deleted:
            path = core_path(self.key.namespace, "pods", action.name)
            is_unreachable = not pod.has_ended and worker is not None and pod.deletion_at is not None
            # A worker that never ran has nothing to commit.
            grace_s = 0 if is_unreachable else None if pod.evidence.has_started else 1
            await self._tools.cluster.delete(path, uid=action.uid, grace_s=grace_s)
        observation.forget(action.uid)

    async def _hold_until_drained(self) -> None:
        """Put our finalizer on the run: its pods are to drain before it goes."""
        metadata = self._resource["metadata"]
        held_by = metadata.get("finalizers") or []
        if names.FINALIZER_DRAIN not in held_by:
            await self._patch_finalizers([*held_by, names.FINALIZER_DRAIN])

    async def _let_go(self) -> None:
        held_by = self._resource["metadata"].get("finalizers") or []
        if names.FINALIZER_DRAIN in held_by:
            await self._patch_finalizers([item for item in held_by if item != names.FINALIZER_DRAIN])

    async def _patch_finalizers(self, finalizers: list[str]) -> None:
        metadata = self._resource["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers}}
        self._take(await self._tools.cluster.patch(run_path(metadata["namespace"], metadata["name"]), body))

    async def _drain_for_deletion(self) -> float | None:
        """The run is being deleted: its pods drain, then it may go. What is in the store stays, whatever its state."""
        if names.FINALIZER_DRAIN not in (self._resource["metadata"].get("finalizers") or []):
            return None
        if await self._stop_all(Intent.RUN_ENDED):
            return self._tools.settings.poll_s
        for pod in self._tools.observation.pods_of(self.key):
            await self._forget(ForgetWorker(name=pod.name, uid=pod.uid), None)
        await self._let_go()
        return None

    async def _stop_all(self, intent: Intent) -> int:
        """Stop every living pod; returns how many are still to end."""
        live = await self._live()
        for worker in live:
            pod = self._tools.observation.pod(worker.uid)
            if pod is not None and pod.deletion_at is None:
                await self._stop(worker.name, worker.uid, intent)
        return len(live)

    async def _live(self) -> list[WorkerView]:
        views = await self._tools.observation.views_of(self.key, self._tools.now())
        return [worker for worker in views if worker.is_live]

    async def _retire(self, run: InferenceRun) -> float | None:
        """The run has ended and its pods are gone: let it go, and delete it when its time is over."""
        await self._let_go()
        if run.spec.ttl_after_finished_s is None:
            return None
        status = self._resource.get("status") or {}
        ended_at = max(
            (
                at
                for item in status.get("conditions") or []
                if item.get("type") in {ConditionType.COMPLETE, ConditionType.FAILED}
                and item.get("status") == "True"
                and (at := parse_stamp(item.get("lastTransitionTime"))) is not None
            ),
            default=None,
        )
        if ended_at is None:
            return None
        left_s = (ended_at + timedelta(seconds=run.spec.ttl_after_finished_s) - self._tools.now()).total_seconds()
        if left_s > 0:
            return left_s
        metadata = self._resource["metadata"]
        await self._tools.cluster.delete(run_path(metadata["namespace"], metadata["name"]), uid=metadata["uid"])
        return self._tools.settings.poll_s

    async def _refuse(self, noted: Ledger, refused: _Refused) -> None:
        """Say why the run does not go on. Its pods, should it have any, are left alone."""
        status = self._resource.get("status") or {}
        generation = self._resource["metadata"].get("generation", 1)
        condition = Condition(
            type=refused.kind,
            status="False",
            reason=refused.reason,
            message=refused.message,
            observed_generation=generation,
        )
        others = [item for item in noted.memory.conditions if item.type is not refused.kind]
        conditions = merged(noted.memory.conditions, (*others, condition), now=self._tools.now())
        is_new = not any(
            item.type is refused.kind and item.reason == refused.reason and item.message == refused.message
            for item in noted.memory.conditions
        )
        await self._write_status(
            {
                "phase": status.get("phase") or Phase.PENDING.value,
                "message": refused.message,
                "observedGeneration": generation,
                "conditions": [codec.to_fields(item) for item in conditions],
                "memory": ledger.to_text(noted),
            }
        )
        if is_new:
            logger.warning("run refused", extra={**self._where(), "reason": refused.reason, "detail": refused.message})
            self._tools.events.emit(self._resource, refused.reason, refused.message, is_warning=True)

    async def _confess(self, error: Exception) -> None:
        """Say in a condition that it is the controller that fails, not the run. Best effort."""
        noted = ledger.from_status(self._resource.get("status") or {})
        condition = Condition(
            type=ConditionType.PROGRESSING,
            status="Unknown",
            reason="ControllerError",
            message=f"the controller cannot reconcile this run, and tries again: {error!r}"[:1000],
            observed_generation=self._resource["metadata"].get("generation", 1),
        )
        others = [item for item in noted.memory.conditions if item.type is not condition.type]
        conditions = merged(noted.memory.conditions, (*others, condition), now=self._tools.now())
        try:
            await self._write_status({"conditions": [codec.to_fields(item) for item in conditions]})
        except (ApiError, ApiUnavailable) as problem:
            logger.warning("condition not written", extra={**self._where(), "detail": str(problem)})

    async def _write_status(self, wanted: dict[str, Any]) -> None:
        """Patch the status over the version that was read; nothing when it says so already. Raises ObjectChanged."""
        metadata, current = self._resource["metadata"], self._resource.get("status") or {}
        if all(_plain(value) == _plain(current.get(name)) for name, value in wanted.items()):
            return
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": _patch_of(wanted)}
        self._take(await self._tools.cluster.patch(run_path(metadata["namespace"], metadata["name"], "status"), body))

    def _take(self, resource: Object) -> None:
        if is_newer(resource["metadata"]["resourceVersion"], self._resource["metadata"]["resourceVersion"]):
            generation = self._resource["metadata"].get("generation")
            self._resource = resource
            if resource["metadata"].get("generation") != generation:
                self._wake.set()

    async def _refresh(self) -> None:
        """Read the run anew; it is gone when it, or the one that has its name, is another."""
        key = self.key
        try:
            found = await self._tools.cluster.get(run_path(key.namespace, key.name))
        except ObjectMissing:
            self._is_gone = True
            return
        except (ApiError, ApiUnavailable) as error:
            logger.warning("run not read", extra={**self._where(), "detail": str(error)})
            return
        if found["metadata"]["uid"] != key.uid:
            self._is_gone = True
            return
        self._take(found)

    def _tell(self, before: Mapping[str, Any], memory: RunMemory, decision: Decision) -> None:
        """Events for what has changed, once the status says so."""
        status, events = decision.status, self._tools.events
        if before.get("phase") != status.phase.value:
            is_warning = status.phase in {Phase.FAILED, Phase.CIRCUIT_OPEN}
            text = status.message or f"{status.progress.records} records done, {status.shards.total} shards"
            events.emit(self._resource, status.phase.value, text, is_warning=is_warning)
            logger.info(
                "phase changed",
                extra={**self._where(), "before": before.get("phase"), "phase": status.phase.value, "detail": text},
            )
        known = {(item.pod, item.time) for item in memory.last_failures}
        for note in decision.memory.last_failures:
            if (note.pod, note.time) not in known:
                text = f"{note.pod} on {note.node or 'no node'}: {note.evidence}" + (
                    f"; {note.advice}" if note.advice else ""
                )
                events.emit(self._resource, note.failure_class.value, text, is_warning=True)

    async def _blocking(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tools.executor, call, *arguments)

    def _where(self) -> dict[str, object]:
        return {"namespace": self.key.namespace, "run": self.key.name}


def _opened(run: InferenceRun, store: RunStore, uid: str, noted: Ledger, *, restarts: bool) -> OpenedRun:
    """Open the run in its store: what blocks, and so runs in a thread."""
    found = store.read_record()
    if found is None:
        store.probe()
    objects = list_inputs(run.spec.input.uris, shard_bytes=run.spec.input.shard_bytes)
    has_restarted = found is not None and noted.restart_from is not None and found.generation > noted.restart_from
    return store.open_run(
        wanted_record(run, objects, uid=uid), objects, restarts=restarts and found is not None and not has_restarted
    )


def _are_all_final(shards: Plan, manifests: Mapping[int, ShardManifest]) -> bool:
    return all(item.shard in manifests and manifests[item.shard].is_final for item in shards.shards)


def _plain(value: Any) -> Any:
    """Without what is null or an empty text: absent says the same, and an API server of 1.20 may take "" for null."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item not in (None, "")}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _patch_of(value: Any) -> Any:
    """A merge patch that leaves what `_plain` gives: null removes a field."""
    if isinstance(value, dict):
        return {name: None if item in (None, "") else _patch_of(item) for name, item in value.items()}
    return _plain(value)


def _told(action: Action) -> str:
    """An action in a few words, for the log."""
    match action:
        case StartWorker():
            return f"start {action.name}"
        case StopWorker():
            return f"stop {action.name} ({action.intent})"
        case ReleaseShard():
            return f"release shard {action.shard} of {action.attempt.pod} ({action.attempt.failure_class})"
        case ForgetWorker():
            return f"forget {action.name}"
        case Finalize():
            return "finalize"
