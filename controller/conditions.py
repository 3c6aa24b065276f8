"""Conditions of a run's status, after the Kubernetes API conventions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from contract.names import ConditionType


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One entry of `status.conditions`."""

    type: ConditionType
    status: str
    """`True`, `False` or `Unknown`."""
    reason: str
    """CamelCase, for programs."""
    message: str = ""
    """For people."""
    observed_generation: int = 0
    last_transition_time: datetime | None = None
    """When `status` last changed; set by `merged`."""


def merged(previous: Iterable[Condition], wanted: Iterable[Condition], *, now: datetime) -> tuple[Condition, ...]:
    """`wanted`, each with the time at which its status last changed."""
    before = {item.type: item for item in previous}
    return tuple(
        replace(
            item,
            last_transition_time=before[item.type].last_transition_time
            if item.type in before and before[item.type].status == item.status
            else now,
        )
        for item in wanted
    )
