"""The flight recorder: what a worker was doing, in at most 4,096 bytes, readable after any death. Pure.

The worker overwrites its termination-message file before each batch and when it ends. The kubelet hands the file to the
API even when the whole container is OOM-killed; on one machine the coordinator reads it. So whoever judges the death
knows which records were in flight when nothing could be said any more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from contract.names import MAX_TERMINATION_MESSAGE_BYTES

_KIND = "inferencerun-flight"
MAX_ID_LENGTH = 200
"""Characters kept of a record's id: even escaped, it leaves room for the facts."""
_MAX_BYTES_PER_CHARACTER = 12
"""JSON writes a character beyond the first plane as two escapes of six."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """The last thing a worker wrote."""

    shard: int | None = None
    """Shard it held; None = none."""
    epoch: int | None = None
    first: int | None = None
    """First ordinal in flight in the model process; None = nothing in flight."""
    next: int | None = None
    """Ordinal after the last one in flight."""
    first_offset: int | None = None
    """Offset of the first record in flight: with it and the id, a record can be quarantined by who has not read it."""
    first_id: str = ""
    """Its id, cut to MAX_ID_LENGTH."""
    has_claimed: bool = False
    """Whether this worker has claimed any shard since it started."""
    has_committed: bool = False
    """Whether this worker has committed anything since it started."""
    model_restarts: int = 0
    """Times the model process was started again."""
    exit_code: int | None = None
    """The exit code the worker is about to end with; None = it was still working."""
    detail: str = ""
    """The error that ends it, for people."""


def to_text(flight: Flight) -> str:
    """The file's content, never above the kubelet's limit: the detail is cut, not the facts."""
    detail = flight.detail[:MAX_TERMINATION_MESSAGE_BYTES]
    while True:
        text = json.dumps(
            {
                "kind": _KIND,
                "shard": flight.shard,
                "epoch": flight.epoch,
                "first": flight.first,
                "next": flight.next,
                "firstOffset": flight.first_offset,
                "firstId": flight.first_id[:MAX_ID_LENGTH],
                "claimed": flight.has_claimed,
                "committed": flight.has_committed,
                "modelRestarts": flight.model_restarts,
                "exitCode": flight.exit_code,
                "detail": detail,
            }
        )
        excess = len(text) - MAX_TERMINATION_MESSAGE_BYTES
        if excess <= 0:
            return text
        detail = detail[: -max(1, excess // _MAX_BYTES_PER_CHARACTER)]


def from_text(text: str) -> Flight | None:
    """The flight in a termination message; None when it is not ours (empty, cut, the log's tail, or made up)."""
    try:
        fields = json.loads(text)
        if fields["kind"] != _KIND:
            return None
        flight = Flight(
            shard=fields["shard"],
            epoch=fields["epoch"],
            first=fields["first"],
            next=fields["next"],
            first_offset=fields["firstOffset"],
            first_id=fields["firstId"],
            has_claimed=fields["claimed"],
            has_committed=fields["committed"],
            model_restarts=fields["modelRestarts"],
            exit_code=fields["exitCode"],
            detail=fields["detail"],
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return flight if _is_sound(flight) else None


def _is_sound(flight: Flight) -> bool:
    """Whether each field has its type: whatever runs in the container can write that file."""
    numbers = (flight.shard, flight.epoch, flight.first, flight.next, flight.first_offset, flight.exit_code)
    return (
        all(item is None or (type(item) is int and item >= 0) for item in (*numbers, flight.model_restarts))
        and flight.model_restarts is not None
        and isinstance(flight.first_id, str)
        and isinstance(flight.detail, str)
        and isinstance(flight.has_claimed, bool)
        and isinstance(flight.has_committed, bool)
    )
