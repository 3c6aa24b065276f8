"""coordinator.json: who coordinates an output from one machine, and what it must remember. Changed by conditional put.

Only liveness hangs on it: two coordinators on one output waste work and confuse people, so the second is refused. Safety
does not: epochs fence whoever writes too late.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from contract import layout, process_identity
from contract.documents import decode, encode, reading_fields
from contract.errors import Fenced, InferenceRunError
from contract.manifest import HISTORY_LENGTH, parse_stamp, stamp
from contract.names import ExitCode
from contract.store.commit import Committer
from contract.store.errors import NotFound, Superseded
from contract.store.protocol import ETag

KIND = "Coordinator"
FORMAT_VERSION = 1

HEARTBEAT = timedelta(seconds=10)
"""How often a living coordinator writes; one small put."""
STALE = timedelta(seconds=60)
"""A coordinator on another host that has been silent for so long is taken for gone."""


class AlreadyCoordinated(InferenceRunError):
    """Another coordinator works on this output. Wait for it, or stop it."""

    exit_code = ExitCode.TRANSIENT


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorRecord:
    """One version of coordinator.json."""

    holder: str | None
    """Process identity of the coordinator; None = it left in good order."""
    host: str
    heartbeat_at: datetime
    memory: dict[str, Any]
    version: int
    commit_id: str
    history: tuple[str, ...]


def refusal(record: CoordinatorRecord, *, now: datetime, is_here: bool, is_alive: bool) -> str | None:
    """Why a new coordinator must not start, or None. Pure.

    Args:
        record: what is there.
        now: the time.
        is_here: whether the holder runs, or ran, on this boot of this host, so that `is_alive` can be known.
        is_alive: whether the holder's process is alive here.
    """
    if record.holder is None:
        return None
    if is_here:
        return f"process {record.holder.split(':')[2]} on this host" if is_alive else None
    silent = now - record.heartbeat_at
    if silent < STALE:
        return f"a process on host {record.host}, last heard of {silent.total_seconds():.0f} s ago"
    return None


class CoordinatorLock:
    """The record while we hold it."""

    def __init__(self, committer: Committer, *, new_id: Callable[[], str]) -> None:
        self._committer = committer
        self._new_id = new_id
        self._me = str(process_identity.own_identity())
        self._current: CoordinatorRecord | None = None
        self._etag = ETag("")

    def acquire(self, now: datetime) -> dict[str, Any]:
        """Become the coordinator; returns the memory the last one left (empty at first).

        Raises:
            AlreadyCoordinated: somebody is, and lives.
        """
        try:
            stored = self._committer.read(layout.COORDINATOR_KEY)
        except NotFound:
            self._put(None, memory={}, holder=self._me, now=now)
            return {}
        found = _from_json(stored.body, where=f"{self._committer.store.uri}/{layout.COORDINATOR_KEY}")
        identity = process_identity.parse(found.holder) if found.holder else None
        reason = refusal(
            found,
            now=now,
            is_here=identity is not None and process_identity.is_this_host(identity),
            is_alive=identity is not None and process_identity.is_alive(identity),
        )
        if reason is not None:
            raise AlreadyCoordinated(
                f"{self._committer.store.uri} is being worked on by {reason}; wait for it or stop it, then run this again"
            )
        self._etag = stored.etag
        self._put(found, memory=found.memory, holder=self._me, now=now)
        return found.memory

    def save(self, memory: dict[str, Any], now: datetime) -> None:
        """Write memory and heartbeat. Raises Fenced when another coordinator has taken over."""
        assert self._current is not None, "save before acquire"
        self._put(self._current, memory=memory, holder=self._me, now=now)

    def release(self, now: datetime) -> None:
        """Leave in good order: the next coordinator need not wait, wherever it runs. Raises as `save` does."""
        assert self._current is not None, "release before acquire"
        self._put(self._current, memory=self._current.memory, holder=None, now=now)

    def is_due(self, memory: dict[str, Any], now: datetime) -> bool:
        """Whether there is something to save."""
        current = self._current
        return current is None or current.memory != memory or now - current.heartbeat_at >= HEARTBEAT

    def _put(
        self, current: CoordinatorRecord | None, *, memory: dict[str, Any], holder: str | None, now: datetime
    ) -> None:
        commit_id = self._new_id()
        proposed = CoordinatorRecord(
            holder=holder,
            host=platform.node(),
            heartbeat_at=now,
            memory=memory,
            version=current.version + 1 if current else 1,
            commit_id=commit_id,
            history=((*current.history, commit_id) if current else (commit_id,))[-HISTORY_LENGTH:],
        )
        body = _to_json(proposed)
        try:
            if current is None:
                outcome = self._committer.create_document(layout.COORDINATOR_KEY, body, commit_id=commit_id)
            else:
                outcome = self._committer.update_document(layout.COORDINATOR_KEY, body, self._etag, commit_id=commit_id)
        except Superseded as error:
            raise self._lost(error.current.body) from error
        if outcome.superseded_by is not None:
            raise self._lost(outcome.superseded_by.body)
        self._current, self._etag = replace(proposed), outcome.etag

    def _lost(self, body: bytes) -> InferenceRunError:
        found = _from_json(body, where=layout.COORDINATOR_KEY)
        text = f"another coordinator ({found.holder} on {found.host}) has taken over {self._committer.store.uri}"
        return Fenced(text) if self._current else AlreadyCoordinated(text)


def _to_json(record: CoordinatorRecord) -> bytes:
    return encode(
        KIND,
        FORMAT_VERSION,
        {
            "holder": record.holder,
            "host": record.host,
            "heartbeatAt": stamp(record.heartbeat_at),
            "memory": record.memory,
            "version": record.version,
            "commitId": record.commit_id,
            "history": list(record.history),
        },
    )


def _from_json(body: bytes, *, where: str) -> CoordinatorRecord:
    fields = decode(KIND, FORMAT_VERSION, body, where=where)
    with reading_fields(KIND, where=where):
        heartbeat_at = parse_stamp(fields["heartbeatAt"])
        assert heartbeat_at is not None
        return CoordinatorRecord(
            holder=fields["holder"],
            host=fields["host"],
            heartbeat_at=heartbeat_at,
            memory=fields["memory"],
            version=fields["version"],
            commit_id=fields["commitId"],
            history=tuple(fields["history"]),
        )
