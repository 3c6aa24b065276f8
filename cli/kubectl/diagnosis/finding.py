"""What a finding is, and the words that several of them use. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from cli.kubectl.facts import Event, Failure, Run
from contract.names import LABEL_RUN
from controller.pod_template import label_value

RECENT = timedelta(minutes=15)
"""How long an event or a failure explains what is seen now."""


MISSING = re.compile(r'(secret|configmap) "([^"]+)" not found')
"""The kubelet's words for an object that a pod needs."""
IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
"""Reasons of a container that waits for its image."""


class Severity(StrEnum):
    """What a finding means for the run."""

    STOPS = "stops"
    """The run does not go on because of it."""
    HINDERS = "hinders"
    """It goes on, but worse than it could."""
    NOTE = "note"
    """Worth knowing; nothing is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found."""

    code: str
    """CamelCase, for programs."""
    severity: Severity
    summary: str
    """What is wrong, in a sentence."""
    evidence: str
    """What was seen; empty when the summary says it all. May have several lines."""
    fix: str
    """What mends it. May have several lines; one that begins with a command is that command, for copying."""


def recent(events: Sequence[Event] | None, now: datetime) -> list[Event]:
    """Events that may still explain something, oldest first."""
    found = [item for item in events or () if item.at is not None and now - item.at <= RECENT]
    return sorted(found, key=lambda item: item.at or now)


def failure_text(failures: Sequence[Failure], *, told: str = "") -> str:
    """The newest, with its advice; without what `told` says already."""
    if not failures:
        return ""
    last = failures[-1]
    place = f" on {last.node}" if last.node else ""
    more = "; ".join(item for item in (last.evidence, last.advice) if item and item not in told)
    return f"last failure: {last.failure_class}, {last.pod}{place}" + (f": {more}" if more else "")


def edit(run: Run, what: str) -> str:
    """The command that changes the run's spec, and what is to be changed there."""
    return f"kubectl edit irun {run.name} -n {run.namespace}   # {what}"


def renew(run: Run) -> str:
    """A worker that waits keeps the pod that it was made as; its place is taken by one of the spec as it is now."""
    selected = f"-l {LABEL_RUN}={label_value(run.name)} --field-selector status.phase=Pending"
    return f"kubectl delete pods -n {run.namespace} {selected}"


def in_words(text: str) -> str:
    """Python's way to write an exception, `KeyError('x')`, as people write it: `KeyError: x`."""
    return _EXCEPTION.sub(lambda found: f"{found[1]}: {found[3]}", text)


_EXCEPTION = re.compile(r"""\b(\w+(?:Error|Exception|Timeout))\((["'])(.*?)\2,?\)""", re.DOTALL)


def few(names: Iterable[str]) -> str:
    """At most three of them."""
    found = sorted(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def age_s(at: datetime, now: datetime) -> float:
    """Seconds since `at`; 0 when it lies ahead, as it may between two clocks."""
    return max(0.0, (now - at).total_seconds())
