"""The shard manifest: the only truth about a shard, as frozen values and their JSON. Pure.

An object that no manifest names does not exist. The manifest is changed only by conditional put; `contract.transitions`
holds the changes, `invariants` what every change must keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from contract.documents import decode, encode, reading_fields
from contract.layout import checked_data_key
from contract.names import FailureClass, QuarantineClass
from contract.ranges import Ranges, contains, count, difference, normalised

KIND = "ShardManifest"
FORMAT_VERSION = 1
HISTORY_LENGTH = 64
"""How many commit ids a manifest remembers, so that a writer recognises its own put after a lost reply."""
ATTEMPTS_KEPT = 20
"""How many ended attempts a manifest keeps in full; `restarts` counts all."""


class ShardStatus(StrEnum):
    """Where a shard stands. An absent manifest means: never claimed."""

    PENDING = "pending"
    """Free to claim once `notBefore` has passed."""
    RUNNING = "running"
    """Held by `owner` at `epoch`."""
    COMPLETE = "complete"
    """Every record is in a checkpoint or in quarantine. Final."""
    FAILED = "failed"
    """Its budget is spent. Final until `inferencerun retry`."""


FINAL = frozenset({ShardStatus.COMPLETE, ShardStatus.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds a shard."""

    pod: str
    uid: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed data object. Covers the ordinals [first, next), less those quarantined."""

    key: str
    number: int
    epoch: int
    first: int
    next: int
    records: int
    """Rows in the object."""
    bytes: int
    sha256: str
    created_at: datetime
    seconds: float
    """Worker seconds since the commit (or claim) before it: what its loss would have cost."""
    write_seconds: float = 0.0
    """Seconds that serialising and uploading it took, off the model's path."""
    stall_seconds: float = 0.0
    """Seconds for which the worker waited to hand it over: what it cost the model."""
    next_offset: int | None = None
    """Offset at which reading resumes after its last record; None = unknown, read from the range's start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A record that has no row, and why."""

    ordinal: int
    offset: int
    id: str
    """Cut to `contract.flight.MAX_ID_LENGTH`: also by the worker that has read the whole of it."""
    quarantine_class: QuarantineClass
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """A range of ordinals that was in flight when a worker died in a way that may be the records' fault."""

    first: int
    next: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A worker's time with the shard, ended."""

    pod: str
    uid: str
    node: str
    epoch: int
    failure_class: FailureClass
    evidence: str
    counted: bool
    """Whether it counts at all; a spot eviction, an intended stop or a lost node never does."""
    ended_at: datetime
    held_seconds: float | None = None
    """Seconds between claim and end; None when the claim's time is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What the next worker should do differently."""

    token_budget: int | None = None
    """Tokens per batch; None = the spec's."""
    memory_bytes: int | None = None
    """A worker with less memory than this must leave the shard to others; None = any may take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarts:
    """Ended attempts over the whole life of the shard."""

    total: int = 0
    counted: int = 0
    by_class: tuple[tuple[str, int], ...] = ()
    streak: int = 0
    """Attempts charged to the shard's budget since its last progress (a checkpoint or a quarantined record)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a shard is `failed`, and what to do."""

    failure_class: FailureClass
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardManifest:
    """One version of a shard's manifest."""

    shard: int
    generation: int
    object: str
    start: int
    end: int
    status: ShardStatus
    epoch: int
    """Grows with each claim and never resets; a commit carries it, a higher one fences."""
    owner: Owner | None
    version: int
    """Counts the changes; makes equal content distinct (an ETag of equal bytes is equal)."""
    commit_id: str
    """Unique id of the change that made this version."""
    history: tuple[str, ...]
    """Ids of the last changes, this one included, oldest first."""
    records: int | None = None
    """Records of the range; None until it has been read to its end once."""
    done: Ranges = ()
    """Ordinals in committed checkpoints."""
    bytes_done: int = 0
    """Stored bytes of the range up to the last committed record: progress, and never used to decide."""
    checkpoints: tuple[Checkpoint, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    strikes: tuple[Strike, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    restarts: Restarts = field(default_factory=Restarts)
    hints: Hints = field(default_factory=Hints)
    claimed_at: datetime | None = None
    completed_by: Owner | None = None
    """Who settled its last record; None = not complete, or not known: done by the release of a dead worker's shard, or
    by a version that did not keep it."""
    not_before: datetime | None = None
    """No claim before this instant; None = at once."""
    failure: Failure | None = None

    @property
    def quarantined_ordinals(self) -> Ranges:
        """Ordinals in quarantine."""
        return normalised((item.ordinal, item.ordinal + 1) for item in self.quarantined)

    @property
    def settled(self) -> Ranges:
        """Ordinals that need no more work."""
        return normalised((*self.done, *self.quarantined_ordinals))

    @property
    def is_final(self) -> bool:
        """Complete or failed."""
        return self.status in FINAL


def invariants(new: ShardManifest, current: ShardManifest | None) -> str | None:
    """What is wrong with replacing `current` by `new`, or None. Checked before every put. Pure.

    `>=` for the epoch, not `>`: commits of one owner keep it. Records once done or quarantined stay so; only
    `contract.transitions.requeued` may take them back, and it raises the epoch to say so.
    """
    settled = [*new.done, *((item.ordinal, item.ordinal + 1) for item in new.quarantined)]
    problems = (
        (
            count(normalised(settled)) != sum(end - start for start, end in settled),
            "a record is done or quarantined twice",
        ),
        (sum(item.records for item in new.checkpoints) != count(new.done), "checkpoint rows and done records differ"),
        (
            new.status is ShardStatus.COMPLETE and (new.records is None or count(new.settled) != new.records),
            "complete, but not every record is done or quarantined",
        ),
        (
            new.records is not None and bool(difference(new.settled, ((0, new.records),))),
            "an ordinal lies beyond the range's records",
        ),
        (
            (new.status is ShardStatus.RUNNING) != (new.owner is not None),
            "running and having an owner must go together",
        ),
        (not new.history or new.history[-1] != new.commit_id, "the history does not end with the commit id"),
        (len({item.key for item in new.checkpoints}) != len(new.checkpoints), "a checkpoint is named twice"),
        (any(item.epoch > new.epoch for item in new.checkpoints), "a checkpoint of a later epoch"),
    )
    for is_broken, message in problems:
        if is_broken:
            return message
    if current is None:
        return None if new.version == 1 else "the first version must be 1"
    if new.version != current.version + 1:
        return f"version {new.version} must follow {current.version}"
    if new.epoch < current.epoch:
        return f"epoch {new.epoch} is below {current.epoch}"
    if (new.shard, new.generation, new.object, new.start, new.end) != (
        current.shard,
        current.generation,
        current.object,
        current.start,
        current.end,
    ):
        return "a shard's range never changes"
    if new.epoch == current.epoch and difference(current.settled, new.settled):
        return "settled records were taken back without a new epoch"
    return None


def is_claimable(manifest: ShardManifest, now: datetime) -> bool:
    """Whether a worker may claim the shard at `now`."""
    return manifest.status is ShardStatus.PENDING and (manifest.not_before is None or manifest.not_before <= now)


def is_done(manifest: ShardManifest, ordinal: int) -> bool:
    """Whether the record needs no more work."""
    return contains(manifest.settled, ordinal)


def stamp(instant: datetime | None) -> str | None:
    """RFC 3339 text in UTC, milliseconds."""
    if instant is None:
        return None
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_stamp(text: str | None) -> datetime | None:
    """The instant in an RFC 3339 text, aware, UTC."""
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)


def to_json(manifest: ShardManifest) -> bytes:
    """Stored bytes."""
    failure = manifest.failure
    fields: dict[str, Any] = {
        "shard": manifest.shard,
        "generation": manifest.generation,
        "object": manifest.object,
        "start": manifest.start,
        "end": manifest.end,
        "status": manifest.status.value,
        "epoch": manifest.epoch,
        "owner": _owner_fields(manifest.owner),
        "version": manifest.version,
        "commitId": manifest.commit_id,
        "history": list(manifest.history),
        "records": manifest.records,
        "done": [list(pair) for pair in manifest.done],
        "bytesDone": manifest.bytes_done,
        "checkpoints": [
            {
                "key": item.key,
                "number": item.number,
                "epoch": item.epoch,
                "first": item.first,
                "next": item.next,
                "records": item.records,
                "bytes": item.bytes,
                "sha256": item.sha256,
                "createdAt": stamp(item.created_at),
                "seconds": item.seconds,
                "writeSeconds": item.write_seconds,
                "stallSeconds": item.stall_seconds,
                "nextOffset": item.next_offset,
            }
            for item in manifest.checkpoints
        ],
        "quarantined": [
            {
                "ordinal": item.ordinal,
                "offset": item.offset,
                "id": item.id,
                "class": item.quarantine_class.value,
                "detail": item.detail,
            }
            for item in manifest.quarantined
        ],
        "strikes": [{"first": item.first, "next": item.next, "count": item.count} for item in manifest.strikes],
        "attempts": [
            {
                "pod": item.pod,
                "uid": item.uid,
                "node": item.node,
                "epoch": item.epoch,
                "class": item.failure_class.value,
                "evidence": item.evidence,
                "counted": item.counted,
                "endedAt": stamp(item.ended_at),
                "heldSeconds": item.held_seconds,
            }
            for item in manifest.attempts
        ],
        "restarts": {
            "total": manifest.restarts.total,
            "counted": manifest.restarts.counted,
            "byClass": dict(manifest.restarts.by_class),
            "streak": manifest.restarts.streak,
        },
        "hints": {"tokenBudget": manifest.hints.token_budget, "memoryBytes": manifest.hints.memory_bytes},
        "claimedAt": stamp(manifest.claimed_at),
        "completedBy": _owner_fields(manifest.completed_by),
        "notBefore": stamp(manifest.not_before),
        "failure": None if failure is None else {"class": failure.failure_class.value, "detail": failure.detail},
    }
    return encode(KIND, FORMAT_VERSION, fields)


def _owner_fields(owner: Owner | None) -> dict[str, Any] | None:
    return None if owner is None else {"pod": owner.pod, "uid": owner.uid, "node": owner.node}


def _owner(fields: dict[str, Any] | None) -> Owner | None:
    return None if fields is None else Owner(pod=fields["pod"], uid=fields["uid"], node=fields["node"])


def from_json(body: bytes, *, where: str) -> ShardManifest:
    """The manifest stored in `body`.

    Raises:
        Corrupt: checksum, shape or a key that points outside the shard; `inferencerun repair` is the way out.
        NewerFormat: written by a newer version.
    """
    fields = decode(KIND, FORMAT_VERSION, body, where=where)
    with reading_fields(KIND, where=where):
        manifest = _from_fields(fields)
    for item in manifest.checkpoints:
        checked_data_key(item.key, generation=manifest.generation, shard=manifest.shard, where=where)
    return manifest


def _from_fields(fields: dict[str, Any]) -> ShardManifest:
    failure, restarts = fields["failure"], fields["restarts"]
    return ShardManifest(
        shard=fields["shard"],
        generation=fields["generation"],
        object=fields["object"],
        start=fields["start"],
        end=fields["end"],
        status=ShardStatus(fields["status"]),
        epoch=fields["epoch"],
        owner=_owner(fields["owner"]),
        version=fields["version"],
        commit_id=fields["commitId"],
        history=tuple(fields["history"]),
        records=fields["records"],
        done=normalised((start, end) for start, end in fields["done"]),
        bytes_done=fields["bytesDone"],
        checkpoints=tuple(
            Checkpoint(
                key=item["key"],
                number=item["number"],
                epoch=item["epoch"],
                first=item["first"],
                next=item["next"],
                records=item["records"],
                bytes=item["bytes"],
                sha256=item["sha256"],
                created_at=datetime.fromisoformat(item["createdAt"]),
                seconds=item["seconds"],
                write_seconds=item.get("writeSeconds", 0.0),
                stall_seconds=item.get("stallSeconds", 0.0),
                next_offset=item["nextOffset"],
            )
            for item in fields["checkpoints"]
        ),
        quarantined=tuple(
            Quarantined(
                ordinal=item["ordinal"],
                offset=item["offset"],
                id=item["id"],
                quarantine_class=QuarantineClass(item["class"]),
                detail=item["detail"],
            )
            for item in fields["quarantined"]
        ),
        strikes=tuple(
            Strike(first=item["first"], next=item["next"], count=item["count"]) for item in fields["strikes"]
        ),
        attempts=tuple(
            Attempt(
                pod=item["pod"],
                uid=item["uid"],
                node=item["node"],
                epoch=item["epoch"],
                failure_class=FailureClass(item["class"]),
                evidence=item["evidence"],
                counted=item["counted"],
                ended_at=datetime.fromisoformat(item["endedAt"]),
                held_seconds=item["heldSeconds"],
            )
            for item in fields["attempts"]
        ),
        restarts=Restarts(
            total=restarts["total"],
            counted=restarts["counted"],
            by_class=tuple(sorted(restarts["byClass"].items())),
            streak=restarts["streak"],
        ),
        hints=Hints(token_budget=fields["hints"]["tokenBudget"], memory_bytes=fields["hints"].get("memoryBytes")),
        claimed_at=parse_stamp(fields["claimedAt"]),
        completed_by=_owner(fields.get("completedBy")),
        not_before=parse_stamp(fields["notBefore"]),
        failure=None
        if failure is None
        else Failure(failure_class=FailureClass(failure["class"]), detail=failure["detail"]),
    )
