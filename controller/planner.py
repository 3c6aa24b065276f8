"""One reconcile, decided. Pure."""

from __future__ import annotations

from datetime import datetime

from contract.plan import Plan
from controller.actions import Decision
from controller.api import InferenceRun
from controller.memory import RunMemory
from controller.observed import Observed


def plan(*, run: InferenceRun, plan: Plan | None, observed: Observed, memory: RunMemory, now: datetime) -> Decision:
    """What to do next, what to remember, and what to show. See `Decision` for how to apply it."""
    raise NotImplementedError
