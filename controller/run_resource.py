"""The resource of one run as the controller reads it, and the only place that writes it: status, Events.

The status is patched over the version that was read, so whoever is late (a second controller, an old leader) fails with a
conflict before it has done anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from contract import names
from contract.manifest import parse_stamp, stamp
from contract.names import ConditionType, Phase
from controller import codec, ledger
from controller.actions import Decision
from controller.cluster import ApiError, ApiUnavailable, Object, ObjectMissing, run_path
from controller.conditions import Condition, merged
from controller.ledger import Ledger
from controller.memory import RunMemory
from controller.observation import RunKey
from controller.tools import Tools
from controller.watches import is_newer
from controller.wording import NamedRun, reworded

logger = logging.getLogger(__name__)

_REFUSALS = frozenset({ConditionType.ACCEPTED, ConditionType.PLANNED})
"""Conditions that say, when they are False, why a run is refused."""


class Refused(Exception):
    """The run cannot go on until a person, or time, changes something: said in a condition; its pods are left alone."""

    def __init__(self, kind: ConditionType, reason: str, message: str, *, retry_s: float | None) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.message = message
        self.retry_s = retry_s


class RunResource:
    """One run's resource; `changed` is set whenever a reconcile should look."""

    def __init__(self, resource: Object, tools: Tools) -> None:
        """`resource` as it was first seen."""
        self.current = resource
        """The newest version that was seen."""
        self.changed = asyncio.Event()
        self.changed.set()
        self.is_gone = False
        self._tools = tools
        self._read_version = ""
        """resourceVersion that this look began with, or has written since."""

    @property
    def key(self) -> RunKey:
        """Which run this is."""
        metadata = self.current["metadata"]
        return RunKey(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])

    @property
    def status(self) -> Mapping[str, Any]:
        """Its status as last seen; empty when there is none."""
        return self.current.get("status") or {}

    @property
    def phase(self) -> str | None:
        """`status.phase` as last seen."""
        return self.status.get("phase")

    @property
    def is_being_deleted(self) -> bool:
        """Whether somebody has deleted it, and a finalizer (never ours) keeps it."""
        return bool(self.current["metadata"].get("deletionTimestamp"))

    @property
    def retry_stamp(self) -> str:
        """Value of the annotation that asks for another try; empty = nobody has."""
        return str((self.current["metadata"].get("annotations") or {}).get(names.ANNOTATION_RETRY) or "")

    @property
    def where(self) -> dict[str, object]:
        """Keys for log lines."""
        return {"namespace": self.key.namespace, "run": self.key.name}

    @property
    def _named(self) -> NamedRun:
        """The run for texts about it."""
        output = (self.current.get("spec") or {}).get("output") or {}
        return NamedRun(name=self.key.name, namespace=self.key.namespace, output_uri=str(output.get("uri")))

    def begin_look(self) -> None:
        """What is decided from here on rests on the version seen now; one that comes meanwhile is not written over."""
        self._read_version = self.current["metadata"]["resourceVersion"]

    def saw(self, resource: Object) -> None:
        """A watch or a list has shown the run."""
        before, after = self.current["metadata"], resource["metadata"]
        if not is_newer(after["resourceVersion"], before["resourceVersion"]):
            return
        self.current = resource
        # Our own status writes come back here, and must not wake us for ever.
        if any(
            before.get(name) != after.get(name) for name in ("generation", "deletionTimestamp", "labels", "annotations")
        ):
            self.changed.set()

    def gone(self) -> None:
        """The resource is gone."""
        self.is_gone = True
        self.changed.set()

    async def refresh(self) -> None:
        """Read the run anew; it is gone when it, or the one that has its name, is another."""
        key = self.key
        try:
            found = await self._tools.cluster.get(run_path(key.namespace, key.name))
        except ObjectMissing:
            self.is_gone = True
            return
        except (ApiError, ApiUnavailable) as error:
            logger.warning("run not read", extra={**self.where, "detail": str(error)})
            return
        if found["metadata"]["uid"] != key.uid:
            self.is_gone = True
            return
        self._take(found)

    async def write_status(self, wanted: dict[str, Any]) -> None:
        """Patch the status over the version that was read; nothing when it says so already. Raises ObjectChanged."""
        metadata, current = self.current["metadata"], self.status
        wanted = _worded(wanted, self._named)
        if all(_plain(value) == _plain(current.get(name)) for name, value in wanted.items()):
            return
        body = {"metadata": {"resourceVersion": self._read_version}, "status": _patch_of(wanted)}
        written = await self._tools.cluster.patch(run_path(metadata["namespace"], metadata["name"], "status"), body)
        self._read_version = written["metadata"]["resourceVersion"]
        self._take(written)

    async def refuse(self, noted: Ledger, refused: Refused) -> None:
        """Say why the run does not go on. Its pods, should it have any, are left alone."""
        message = reworded(refused.message, self._named)
        generation = self.current["metadata"].get("generation", 1)
        condition = Condition(
            type=refused.kind,
            status="False",
            reason=refused.reason,
            message=message,
            observed_generation=generation,
        )
        # An earlier refusal has been got over: this one would not have been met otherwise.
        others = [
            item
            for item in noted.memory.conditions
            if item.type is not refused.kind and not (item.type in _REFUSALS and item.status == "False")
        ]
        conditions = merged(noted.memory.conditions, (*others, condition), now=self._tools.now())
        is_new = not any(
            item.type is refused.kind and item.reason == refused.reason and item.message == message
            for item in noted.memory.conditions
        )
        await self.write_status(
            {
                "phase": self.phase or Phase.PENDING.value,
                "message": message,
                "observedGeneration": generation,
                "conditions": [codec.to_fields(item) for item in conditions],
                "memory": ledger.to_text(noted),
            }
        )
        if is_new:
            logger.warning("run refused", extra={**self.where, "reason": refused.reason, "detail": message})
            self._tools.events.emit(self.current, refused.reason, message, is_warning=True)

    async def confess(self, error: Exception) -> None:
        """Say in a condition that it is the controller that fails, not the run. Best effort."""
        self.begin_look()
        noted = ledger.from_status(self.status)
        condition = Condition(
            type=ConditionType.PROGRESSING,
            status="Unknown",
            reason="ControllerError",
            message=f"the controller cannot reconcile this run, and tries again: {error!r}"[:1000],
            observed_generation=self.current["metadata"].get("generation", 1),
        )
        others = [item for item in noted.memory.conditions if item.type is not condition.type]
        conditions = merged(noted.memory.conditions, (*others, condition), now=self._tools.now())
        try:
            await self.write_status({"conditions": [codec.to_fields(item) for item in conditions]})
        except (ApiError, ApiUnavailable) as problem:
            logger.warning("condition not written", extra={**self.where, "detail": str(problem)})

    def tell(self, before: Mapping[str, Any], memory: RunMemory, decision: Decision) -> None:
        """Events for what has changed, once the status says so."""
        status, events = decision.status, self._tools.events
        if before.get("phase") != status.phase.value:
            is_warning = status.phase in {Phase.FAILED, Phase.CIRCUIT_OPEN}
            text = status.message or f"{status.progress.records} records done, {status.shards.total} shards"
            text = reworded(text, self._named)
            events.emit(self.current, status.phase.value, text, is_warning=is_warning)
            logger.info(
                "phase changed",
                extra={**self.where, "before": before.get("phase"), "phase": status.phase.value, "detail": text},
            )
        known = {(item.pod, item.time) for item in memory.last_failures}
        for note in decision.memory.last_failures:
            if (note.pod, note.time) not in known:
                text = f"{note.pod} on {note.node or 'no node'}: {note.evidence}" + (
                    f"; {note.advice}" if note.advice else ""
                )
                events.emit(self.current, note.failure_class.value, reworded(text, self._named), is_warning=True)

    def tell_capacity(self, off_spot_until: datetime | None) -> None:
        """An Event for the run's leaving spot capacity as a whole, and for its return."""
        text = "evictions have become rarer, or old: workers start on spot capacity again"
        if off_spot_until is not None:
            text = f"evictions come too often: workers start on demand until {stamp(off_spot_until)}"
        reason = "BackToSpot" if off_spot_until is None else "OffSpot"
        self._tools.events.emit(self.current, reason, text, is_warning=off_spot_until is not None)

    async def delete(self) -> None:
        """Delete the resource itself."""
        metadata = self.current["metadata"]
        await self._tools.cluster.delete(run_path(metadata["namespace"], metadata["name"]), uid=metadata["uid"])

    def ended_at(self) -> datetime | None:
        """When it succeeded or failed, by its conditions; None = it has not."""
        return max(
            (
                at
                for item in self.status.get("conditions") or []
                if item.get("type") in {ConditionType.COMPLETE, ConditionType.FAILED}
                and item.get("status") == "True"
                and (at := parse_stamp(item.get("lastTransitionTime"))) is not None
            ),
            default=None,
        )

    def _take(self, resource: Object) -> None:
        if is_newer(resource["metadata"]["resourceVersion"], self.current["metadata"]["resourceVersion"]):
            generation = self.current["metadata"].get("generation")
            self.current = resource
            if resource["metadata"].get("generation") != generation:
                self.changed.set()


def _worded(wanted: Mapping[str, Any], run: NamedRun) -> dict[str, Any]:
    """A status whose sentences name what its readers can call: they have the run in a cluster. Pure."""
    worded = {**wanted}
    if "message" in wanted:
        worded["message"] = reworded(wanted["message"], run)
    for name, part in (("conditions", "message"), ("lastFailures", "advice")):
        if name in wanted:
            worded[name] = [{**item, part: reworded(item[part], run)} for item in wanted[name]]
    return worded


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
