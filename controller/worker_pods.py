"""The worker pods of one run: created, told to stop, and removed once their end has been noted. Each is harmless twice."""

from __future__ import annotations

import logging
from dataclasses import replace

from contract import names, settings
from controller import api
from controller.actions import ForgetWorker, StartWorker
from controller.api import InferenceRun
from controller.cluster import ApiError, ApiUnavailable, ObjectChanged, ObjectExists, ObjectMissing, core_path
from controller.observed import Intent, WorkerView
from controller.pod_template import build_pod, grace_period_s
from controller.run_resource import RunResource
from controller.run_store import OpenedRun
from controller.tools import Tools

logger = logging.getLogger(__name__)

LOG_LINES = 1000
"""Last lines that are asked for; of them the last MAX_LOG_BYTES are kept."""


class WorkerPods:
    """Pods of one run. No policy: who starts and who stops has been decided."""

    def __init__(self, resource: RunResource, tools: Tools) -> None:
        """Nothing is asked yet."""
        self._resource = resource
        self._tools = tools
        self.trouble = ""
        """Why the last pod could not be created; empty when it could."""

    async def start(self, run: InferenceRun, opened: OpenedRun, action: StartWorker, *, is_on_demand: bool) -> bool:
        """Create the pod; one of that name which is this run's own counts as created."""
        tools, key = self._tools, self._resource.key
        # The name in run.json, which checkpoints carry: a run may be resumed under another name.
        options = api.worker_settings(
            replace(run, name=opened.record.name),
            generation=opened.record.generation,
            run_uid=opened.record.uid,
            worker_index=action.slot,
            num_workers=max(1, run.spec.workers.count),
            checkpoint_every_s=action.checkpoint_every_s,
            memory_bytes=action.memory_bytes,
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
            is_on_demand=is_on_demand,
            memory_bytes=action.memory_bytes,
            run_labels=self._resource.current["metadata"].get("labels") or {},
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
        self.trouble = ""
        tools.observation.put(created)
        return True

    async def stop(self, name: str, uid: str, intent: Intent) -> None:
        """Record why, then delete with the pod's own grace period: the worker drains."""
        path = core_path(self._resource.key.namespace, "pods", name)
        note = {"metadata": {"uid": uid, "annotations": {names.ANNOTATION_INTENT: intent.value}}}
        try:
            self._tools.observation.put(await self._tools.cluster.patch(path, note))
        except (ObjectMissing, ObjectChanged):
            return  # it is gone, or another has its name
        await self._tools.cluster.delete(path, uid=uid)

    async def log_tail(self, name: str) -> bytes:
        """The end of an ended worker's log; empty when the kubelet does not give it any more."""
        path = core_path(self._resource.key.namespace, "pods", name) + "/log"
        try:
            return await self._tools.cluster.get_tail(
                path, num_bytes=names.MAX_LOG_BYTES, container=names.CONTAINER_WORKER, tailLines=str(LOG_LINES)
            )
        except (ApiError, ApiUnavailable) as error:
            logger.warning("log not kept", extra={**self._resource.where, "pod": name, "detail": str(error)})
            return b""

    async def forget(self, action: ForgetWorker, worker: WorkerView | None) -> None:
        """Delete an ended pod. One whose node cannot be reached would stay for ever: its object is deleted at once."""
        observation = self._tools.observation
        pod = observation.pod(action.uid)
        if pod is not None and not pod.is_deleted:
            path = core_path(self._resource.key.namespace, "pods", action.name)
            is_unreachable = not pod.has_ended and worker is not None and pod.deletion_at is not None
            # A worker that never ran has nothing to commit.
            grace_s = 0 if is_unreachable else None if pod.evidence.has_started else 1
            await self._tools.cluster.delete(path, uid=action.uid, grace_s=grace_s)
        observation.forget(action.uid)

    async def stop_all(self, intent: Intent) -> int:
        """Stop every living pod; returns how many are still to end."""
        live = await self._live()
        for worker in live:
            pod = self._tools.observation.pod(worker.uid)
            if pod is not None and pod.deletion_at is None:
                await self.stop(worker.name, worker.uid, intent)
        return len(live)

    async def _live(self) -> list[WorkerView]:
        views = await self._tools.observation.views_of(self._resource.key, self._tools.now())
        return [worker for worker in views if worker.is_live]

    def _complain(self, message: str) -> None:
        if message != self.trouble:
            self.trouble = message
            logger.warning("pod not created", extra={**self._resource.where, "detail": message})
            self._tools.events.emit(self._resource.current, "FailedCreate", message, is_warning=True)
