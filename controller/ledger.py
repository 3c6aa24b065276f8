"""What the controller keeps in `status.memory` of a run: the planner's memory and its own few facts, as text. Pure.

A JSON document, compressed when it is long: with thousands of workers it would otherwise outgrow what etcd takes. What
`status` shows anyway (conditions) is taken from there. A text that cannot be read is an empty ledger: nothing is lost
or doubled by that, a few counts begin anew.
"""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from contract.errors import Corrupt
from controller import codec
from controller.capacity import OffSpot
from controller.conditions import Condition
from controller.memory import RunMemory, forgiven

logger = logging.getLogger(__name__)

PLAIN_BYTES = 4096
"""Longer documents are compressed; shorter ones can be read by people."""
MAX_BYTES = 262_144
"""Of the text; the CRD allows twice as much, and etcd takes 1.5 MiB for the whole object."""
_COMPRESSED = "zlib:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The memory of one run."""

    memory: RunMemory = field(default_factory=RunMemory)
    output_uri: str = ""
    """Output that the run has been opened on; empty = not yet. It never changes afterwards."""
    store_generation: int | None = None
    """Generation of the output that its workers work on."""
    off_spot: OffSpot = field(default_factory=OffSpot)
    retried_for: str = ""
    """Value of the retry annotation that has been carried out."""
    restarted_for: int | None = None
    """metadata.generation at which `resume: Restart` was last seen carried out; None = it has been Auto since."""


def retried(ledger: Ledger, stamp: str) -> Ledger:
    """The ledger with breakers closed and waits ended, if the retry annotation (`stamp`) has changed since. Pure."""
    if stamp == ledger.retried_for:
        return ledger
    return replace(ledger, memory=forgiven(ledger.memory), retried_for=stamp)


def to_text(ledger: Ledger) -> str:
    """Text for `status.memory`, at most MAX_BYTES."""
    slim = replace(ledger, memory=replace(ledger.memory, conditions=()))
    for memory in (
        slim.memory,
        # Never needed for truth: see RunMemory.
        replace(slim.memory, judged=slim.memory.judged[-32:], samples=(), last_failures=()),
        RunMemory(resource_generation=slim.memory.resource_generation, started_at=slim.memory.started_at),
    ):
        text = _packed(replace(slim, memory=memory))
        if len(text) <= MAX_BYTES:
            break
    return text


def from_status(status: Mapping[str, Any]) -> Ledger:
    """The ledger in the status of a run; an empty one when there is none, or none that can be read: then it is logged."""
    try:
        return read(status)
    except Corrupt as error:
        logger.warning("status.memory cannot be read; counting anew", extra={"detail": str(error)})
        return Ledger()


def read(status: Mapping[str, Any]) -> Ledger:
    """The ledger in the status of a run; an empty one when there is none. Raises Corrupt when it cannot be read."""
    text = status.get("memory") or ""
    if not text:
        return Ledger()
    try:
        body = (
            zlib.decompress(base64.b64decode(text.removeprefix(_COMPRESSED))) if text.startswith(_COMPRESSED) else text
        )
        ledger = codec.from_fields(Ledger, json.loads(body), where="status.memory")
        conditions = tuple(
            codec.from_fields(Condition, item, where="status.conditions") for item in status.get("conditions") or ()
        )
    except (ValueError, zlib.error) as error:
        raise Corrupt(f"status.memory: {error}") from error
    return replace(ledger, memory=replace(ledger.memory, conditions=conditions))


def _packed(ledger: Ledger) -> str:
    text = json.dumps(codec.to_fields(ledger), separators=(",", ":"), sort_keys=True)
    if len(text) <= PLAIN_BYTES:
        return text
    return _COMPRESSED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()
