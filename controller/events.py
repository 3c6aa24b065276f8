"""Kubernetes Events of a run: what people see with `kubectl describe`. Best effort, never in anybody's way."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from contract.manifest import stamp
from controller.cluster import ApiError, ApiUnavailable, Cluster, Object, ObjectExists, core_path

logger = logging.getLogger(__name__)

MAX_WAITING = 200
"""Events that wait for the API server; further ones are dropped: the status says all that matters."""
MESSAGE_LENGTH = 1000
"""The API takes 1,024 characters."""


class EventRecorder:
    """Posts Events in the background."""

    def __init__(self, cluster: Cluster, *, component: str, now: Callable[[], datetime]) -> None:
        """`component` is who reports."""
        self._cluster = cluster
        self._component = component
        self._now = now
        self._tasks: set[asyncio.Task[None]] = set()

    def emit(self, run: Object, reason: str, message: str, *, is_warning: bool = False) -> None:
        """Post an Event on a run; one that says the same within the same second is posted once."""
        if len(self._tasks) >= MAX_WAITING:
            logger.warning("event dropped", extra={"reason": reason, "detail": message})
            return
        task = asyncio.create_task(self._post(self._event(run, reason, message, is_warning=is_warning)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _event(self, run: Object, reason: str, message: str, *, is_warning: bool) -> dict[str, Any]:
        metadata, at = run["metadata"], self._now()
        second = stamp(at.replace(microsecond=0))
        digest = hashlib.sha256(f"{metadata['uid']}/{second}/{reason}/{message}".encode()).hexdigest()[:16]
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name'][:230]}.{digest}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": run["apiVersion"],
                "kind": run["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": "Warning" if is_warning else "Normal",
            "reason": reason,
            "message": message[:MESSAGE_LENGTH],
            "firstTimestamp": second,
            "lastTimestamp": second,
            "count": 1,
            "source": {"component": self._component},
        }

    async def _post(self, event: dict[str, Any]) -> None:
        try:
            await self._cluster.create(core_path(event["metadata"]["namespace"], "events"), event)
        except ObjectExists:
            return
        except (ApiError, ApiUnavailable) as error:
            logger.warning("event lost", extra={"reason": event["reason"], "detail": str(error)})
