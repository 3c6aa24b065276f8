"""What the reconcilers of all runs share: the cluster, what it shows, and the edges of time and chance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from controller.api import InferenceRun
from controller.cluster import Cluster
from controller.events import EventRecorder
from controller.metrics import ControllerMetrics
from controller.observation import Observation
from controller.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Shared by all runs of one term of leadership."""

    cluster: Cluster
    observation: Observation
    events: EventRecorder
    settings: Settings
    metrics: ControllerMetrics
    executor: Executor
    """For what blocks: stores, and long decisions."""
    now: Callable[[], datetime]
    new_id: Callable[[], str]
    rival_of: Callable[[str, InferenceRun], str | None]
    """Who else works on the output of the run with this uid: a sentence, or None."""

    async def blocking(self, call: Callable[..., T], *arguments: Any) -> T:
        """Await `call` in a thread: nothing that blocks may run on the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, call, *arguments)
