"""What a report shows, counted from the manifests of one generation. Pure.

All of it follows from claims, checkpoints and ended attempts. What they do not tell (how long a worker took to start and
load its model before its first claim) is not made up.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any

from cli.output import Manifests
from cli.status import summary
from contract.manifest import Attempt, Checkpoint, ShardManifest, ShardStatus
from contract.names import FailureClass
from contract.plan import Compression, Plan
from contract.run_record import RunRecord
from controller.failure_policy import ADVICE

NUM_BINS = 96
"""Of the throughput: a bar of three pixels on a phone."""
NUM_SIZE_BINS = 24
MAX_POINTS = 400
"""Of the progress curve: one for every second pixel."""
FAILURES_SHOWN = 20
QUARANTINED_SHOWN = 50
FAILED_SHARDS_SHOWN = 50
UNKNOWN_WORKER = "unknown"
"""The lane of checkpoints whose writer no attempt names any more (a manifest keeps the last 20)."""

_NODE_CLASSES = frozenset({FailureClass.NODE_LOST, FailureClass.NODE_REJECTED, FailureClass.GPU_HARDWARE})
_SLOT = re.compile(r"-(\d+)-\d+$")


class Ending(StrEnum):
    """How a worker's time with a shard ended, as the lanes mark it."""

    COMPLETE = "complete"
    HELD = "held"
    """It has not ended."""
    STOPPED = "stopped"
    """By whoever runs it: scaled down, suspended, interrupted."""
    EVICTED = "evicted"
    NODE = "node"
    """The node was lost, refused it, or its GPU is broken."""
    FAILED = "failed"
    UNKNOWN = "unknown"


class Use(StrEnum):
    """What worker time went into."""

    COMMITTED = "committed"
    """Seconds that ended in committed checkpoints: reading and computing."""
    STALLED = "stalled"
    """Of committed checkpoints: seconds for which the worker waited to hand one over."""
    IN_FLIGHT = "inFlight"
    """Since the last commit of shards that are held now."""
    EVICTED = "evicted"
    """Lost to spot evictions: since the last commit before one."""
    FAILED = "failed"
    """The same for all other ends, intended stops included."""
    FINISHING = "finishing"
    """Held beyond the seconds that the checkpoints of a completed shard account for: claiming, last commits."""
    BETWEEN = "between"
    """Estimated: between two shards of one worker."""
    REPLACING = "replacing"
    """Estimated: from a worker's end to the first claim of the next one in its place: scheduling, start, model load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A worker's time with a shard."""

    shard: int
    epoch: int
    pod: str
    uid: str
    node: str
    started_at: datetime
    committed_at: datetime
    """Its last commit; `started_at` when it made none."""
    ended_at: datetime
    """For one that has not ended: now."""
    ending: Ending
    failure_class: FailureClass | None
    evidence: str
    useful_s: float
    """Seconds that its committed checkpoints account for."""
    stalled_s: float
    """Of them, waiting for checkpoints."""
    records: int

    @property
    def held_s(self) -> float:
        """How long it held the shard."""
        return (self.ended_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """All holdings of one worker slot, by start."""

    name: str
    holdings: tuple[Holding, ...]

    @property
    def num_bad_ends(self) -> int:
        """Evictions, lost nodes and failures."""
        return sum(item.ending in BAD_ENDS for item in self.holdings)


BAD_ENDS = frozenset({Ending.EVICTED, Ending.NODE, Ending.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Records in checkpoints at an instant."""

    at: datetime
    records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """A slice of the run's time."""

    records_per_s: float
    workers: float
    """Holders of shards, on average."""
    num_bad_ends: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBin:
    """Records whose checkpoint has a mean size in [from_bytes, to_bytes)."""

    from_bytes: float
    to_bytes: float
    records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """Where a shard of the plan stands."""

    shard: int
    status: str
    """`unclaimed`, `unreadable`, or as in the manifest."""
    share: float
    """Of its bytes, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureLine:
    """An ended attempt that was no success and not intended."""

    shard: int
    attempt: Attempt
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedLine:
    """A record without a row."""

    shard: int
    id: str
    offset: int
    quarantine_class: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedShard:
    """A shard whose budget is spent."""

    shard: int
    failure_class: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """Everything on the page."""

    output: str
    record: RunRecord
    generation: int
    made_at: datetime
    summary: dict[str, Any]
    """As `inferencerun status --json`."""
    started_at: datetime
    ended_at: datetime
    is_live: bool
    """Whether a shard is held now."""
    points: tuple[Point, ...]
    bins: tuple[Bin, ...]
    lanes: tuple[Lane, ...]
    sizes: tuple[SizeBin, ...]
    """Empty = not derivable from the offsets."""
    shards: tuple[ShardState, ...]
    uses: dict[Use, float]
    """Seconds."""
    num_checkpoints: int
    checkpoint_bytes: int
    quarantined_by_class: dict[str, int]
    quarantined: tuple[QuarantinedLine, ...]
    failures: tuple[FailureLine, ...]
    failed_shards: tuple[FailedShard, ...]

    @property
    def elapsed_s(self) -> float:
        """From the first claim to the last sign of life."""
        return (self.ended_at - self.started_at).total_seconds()

    @property
    def goodput(self) -> float | None:
        """Share of all known worker time that ended in committed checkpoints; None before the first second."""
        total_s = sum(self.uses.values())
        return (self.uses[Use.COMMITTED] + self.uses[Use.STALLED]) / total_s if total_s else None


def build_content(
    *,
    output: str,
    record: RunRecord,
    plan: Plan,
    manifests: Manifests,
    generation: int,
    has_success: bool,
    now: datetime,
) -> ReportContent:
    """The content of the page about one generation."""
    readable = manifests.readable
    holdings = sorted(
        (item for manifest in readable for item in holdings_of(manifest, now)),
        key=lambda item: (item.started_at, item.shard),
    )
    is_live = any(item.ending is Ending.HELD for item in holdings)
    started_at = min((item.started_at for item in holdings), default=now)
    ended_at = now if is_live else max((item.ended_at for item in holdings), default=now)
    checkpoints = sorted(
        (item for manifest in readable for item in manifest.checkpoints), key=lambda item: item.created_at
    )
    lanes = lanes_of(holdings)
    return ReportContent(
        output=output,
        record=record,
        generation=generation,
        made_at=now,
        summary=summary(plan, manifests, has_success=has_success, now=now),
        started_at=started_at,
        ended_at=ended_at,
        is_live=is_live,
        points=progress_of(checkpoints, started_at=started_at, ended_at=ended_at),
        bins=bins_of(checkpoints, holdings, started_at=started_at, ended_at=ended_at),
        lanes=lanes,
        sizes=sizes_of(plan, readable),
        shards=_shard_states(plan, manifests),
        uses=uses_of(lanes),
        num_checkpoints=len(checkpoints),
        checkpoint_bytes=sum(item.bytes for item in checkpoints),
        quarantined_by_class=dict(
            Counter(item.quarantine_class.value for manifest in readable for item in manifest.quarantined).most_common()
        ),
        quarantined=_quarantined_lines(readable),
        failures=_failure_lines(readable),
        failed_shards=tuple(
            FailedShard(shard=item.shard, failure_class=item.failure.failure_class.value, detail=item.failure.detail)
            for item in readable
            if item.failure is not None
        )[:FAILED_SHARDS_SHOWN],
    )


def holdings_of(manifest: ShardManifest, now: datetime) -> tuple[Holding, ...]:
    """Who held a shard when: one for each epoch that left a trace."""
    of_epoch: dict[int, list[Checkpoint]] = defaultdict(list)
    for item in manifest.checkpoints:
        of_epoch[item.epoch].append(item)
    attempts = {item.epoch: item for item in manifest.attempts}
    epochs = set(of_epoch) | set(attempts) | ({manifest.epoch} if manifest.owner or manifest.completed_by else set())
    return tuple(
        _holding(manifest, epoch, of_epoch.get(epoch, []), attempts.get(epoch), now) for epoch in sorted(epochs)
    )


def _holding(
    manifest: ShardManifest, epoch: int, checkpoints: Sequence[Checkpoint], attempt: Attempt | None, now: datetime
) -> Holding:
    is_current = epoch == manifest.epoch
    holder = (manifest.owner or manifest.completed_by) if is_current else None
    committed_at = max((item.created_at for item in checkpoints), default=None)
    started_at = min((item.created_at - timedelta(seconds=item.seconds) for item in checkpoints), default=None)
    if is_current and manifest.claimed_at is not None:
        started_at = manifest.claimed_at
    if attempt is not None:
        ended_at = attempt.ended_at
        if attempt.held_seconds is not None:
            started_at = ended_at - timedelta(seconds=attempt.held_seconds)
        ending = _ending(attempt.failure_class)
    elif is_current and manifest.owner is not None:
        ended_at, ending = now, Ending.HELD
    else:
        ended_at = committed_at or started_at or now
        ending = Ending.COMPLETE if is_current and manifest.completed_by else Ending.UNKNOWN
    start = min(started_at or ended_at, ended_at)
    useful_s = min(sum(item.seconds for item in checkpoints), (ended_at - start).total_seconds())
    return Holding(
        shard=manifest.shard,
        epoch=epoch,
        pod=attempt.pod if attempt else holder.pod if holder else UNKNOWN_WORKER,
        uid=attempt.uid if attempt else holder.uid if holder else "",
        node=attempt.node if attempt else holder.node if holder else "",
        started_at=start,
        committed_at=min(max(committed_at or start, start), ended_at),
        ended_at=ended_at,
        ending=ending,
        failure_class=attempt.failure_class if attempt else None,
        evidence=attempt.evidence if attempt else "",
        useful_s=useful_s,
        stalled_s=min(sum(item.stall_seconds for item in checkpoints), useful_s),
        records=sum(item.records for item in checkpoints),
    )


def _ending(failure_class: FailureClass) -> Ending:
    if failure_class in _NODE_CLASSES:
        return Ending.NODE
    return {
        FailureClass.DONE: Ending.COMPLETE,
        FailureClass.INTENDED: Ending.STOPPED,
        FailureClass.SPOT_EVICTION: Ending.EVICTED,
    }.get(failure_class, Ending.FAILED)


def lanes_of(holdings: Iterable[Holding]) -> tuple[Lane, ...]:
    """Holdings by worker slot: `<run>-<slot>-<attempt>` is a lane `worker <slot>`, any other pod one of its own."""
    by_slot: dict[tuple[int, str], list[Holding]] = defaultdict(list)
    for item in holdings:
        found = _SLOT.search(item.pod)
        by_slot[(int(found[1]), f"worker {found[1]}") if found else (10**9, item.pod)].append(item)
    return tuple(Lane(name=key[1], holdings=tuple(by_slot[key])) for key in sorted(by_slot))


def progress_of(checkpoints: Sequence[Checkpoint], *, started_at: datetime, ended_at: datetime) -> tuple[Point, ...]:
    """Records over time: the first, the last, and at most MAX_POINTS between; `checkpoints` by time."""
    points, num_records = [Point(at=started_at, records=0)], 0
    stride = max(1, -(-len(checkpoints) // MAX_POINTS))
    for number, item in enumerate(checkpoints, start=1):
        num_records += item.records
        if number % stride == 0 or number == len(checkpoints):
            points.append(Point(at=max(item.created_at, started_at), records=num_records))
    points.append(Point(at=max(ended_at, points[-1].at), records=num_records))
    return tuple(points)


def bins_of(
    checkpoints: Iterable[Checkpoint], holdings: Iterable[Holding], *, started_at: datetime, ended_at: datetime
) -> tuple[Bin, ...]:
    """The run's time in NUM_BINS slices; a checkpoint's records are spread evenly over the seconds that made it."""
    width_s = (ended_at - started_at).total_seconds() / NUM_BINS
    if width_s <= 0:
        return ()
    records, busy, bad = [0.0] * NUM_BINS, [0.0] * NUM_BINS, [0] * NUM_BINS

    def place(instant: datetime) -> float:
        return min(max((instant - started_at).total_seconds() / width_s, 0.0), float(NUM_BINS))

    for item in checkpoints:
        end = place(item.created_at)
        _spread(records, place(item.created_at - timedelta(seconds=item.seconds)), end, item.records)
    for held in holdings:
        start, end = place(held.started_at), place(held.ended_at)
        _spread(busy, start, end, end - start)
        if held.ending in BAD_ENDS:
            bad[min(int(end), NUM_BINS - 1)] += 1
    return tuple(
        Bin(records_per_s=records[at] / width_s, workers=busy[at], num_bad_ends=bad[at]) for at in range(NUM_BINS)
    )


def _spread(into: list[float], start: float, end: float, amount: float) -> None:
    first, last = min(int(start), len(into) - 1), min(int(end), len(into) - 1)
    if first == last:
        into[first] += amount
        return
    for at in range(first, last + 1):
        into[at] += amount * (min(end, at + 1) - max(start, at)) / (end - start)


def sizes_of(plan: Plan, manifests: Iterable[ShardManifest]) -> tuple[SizeBin, ...]:
    """Records by the mean size of a record in their checkpoint, from the offsets between checkpoints.

    Empty when the offsets do not tell: BGZF's are virtual, and of plain gzip they count decompressed bytes from 0 on.
    """
    samples = [
        sample
        for manifest in manifests
        if plan.shards[manifest.shard].compression is not Compression.BGZF
        for sample in _mean_sizes(manifest)
    ]
    if not samples:
        return ()
    low, high = min(size for size, _ in samples), max(size for size, _ in samples)
    width = (high - low) / NUM_SIZE_BINS
    if width <= 0:
        return (SizeBin(from_bytes=low, to_bytes=high, records=sum(number for _, number in samples)),)
    edges = [low + width * at for at in range(NUM_SIZE_BINS + 1)]
    counts = [0] * NUM_SIZE_BINS
    for size, number in samples:
        counts[min(bisect_right(edges, size) - 1, NUM_SIZE_BINS - 1)] += number
    return tuple(
        SizeBin(from_bytes=edges[at], to_bytes=edges[at + 1], records=number) for at, number in enumerate(counts)
    )


def _mean_sizes(manifest: ShardManifest) -> Iterable[tuple[float, int]]:
    """(mean bytes, records) of each checkpoint that starts where the one before it in the file ends."""
    ordered = sorted(manifest.checkpoints, key=lambda item: item.first)
    starts = [(0, manifest.start), *((item.next, item.next_offset) for item in ordered)]
    for (next_ordinal, offset), item in zip(starts, ordered, strict=False):
        if next_ordinal == item.first and offset is not None and item.next_offset is not None:
            num_records = item.next - item.first
            if item.next_offset > offset and num_records:
                yield (item.next_offset - offset) / num_records, num_records


def uses_of(lanes: Iterable[Lane]) -> dict[Use, float]:
    """Worker seconds by what they went into."""
    uses = dict.fromkeys(Use, 0.0)
    of_ending = {
        Ending.HELD: Use.IN_FLIGHT,
        Ending.COMPLETE: Use.FINISHING,
        Ending.UNKNOWN: Use.FINISHING,
        Ending.EVICTED: Use.EVICTED,
    }
    for lane in lanes:
        for item in lane.holdings:
            uses[Use.COMMITTED] += item.useful_s - item.stalled_s
            uses[Use.STALLED] += item.stalled_s
            uses[of_ending.get(item.ending, Use.FAILED)] += item.held_s - item.useful_s
        if lane.name == UNKNOWN_WORKER:
            continue
        for before, after in pairwise(lane.holdings):
            gap_s = max(0.0, (after.started_at - before.ended_at).total_seconds())
            uses[Use.BETWEEN if before.uid == after.uid else Use.REPLACING] += gap_s
    return uses


def _shard_states(plan: Plan, manifests: Manifests) -> tuple[ShardState, ...]:
    unreadable = {item.shard for item in manifests.unreadable}

    def state(shard: int, size: int) -> ShardState:
        found = manifests.stored.get(shard)
        if found is None:
            return ShardState(shard=shard, status="unreadable" if shard in unreadable else "unclaimed", share=0.0)
        is_complete = found.manifest.status is ShardStatus.COMPLETE
        share = 1.0 if is_complete or not size else min(1.0, found.manifest.bytes_done / size)
        return ShardState(shard=shard, status=found.manifest.status.value, share=share)

    return tuple(state(item.shard, item.end - item.start) for item in plan.shards)


def _quarantined_lines(manifests: Iterable[ShardManifest]) -> tuple[QuarantinedLine, ...]:
    lines = (
        QuarantinedLine(
            shard=manifest.shard,
            id=item.id,
            offset=item.offset,
            quarantine_class=item.quarantine_class.value,
            detail=item.detail,
        )
        for manifest in manifests
        for item in manifest.quarantined
    )
    return tuple(line for line, _ in zip(lines, range(QUARANTINED_SHOWN), strict=False))


def _failure_lines(manifests: Iterable[ShardManifest]) -> tuple[FailureLine, ...]:
    """The newest ends that were neither a success nor intended, newest first."""
    lines = [
        FailureLine(shard=manifest.shard, attempt=item, advice=ADVICE[item.failure_class])
        for manifest in manifests
        for item in manifest.attempts
        if item.failure_class not in {FailureClass.DONE, FailureClass.INTENDED}
    ]
    return tuple(sorted(lines, key=lambda line: line.attempt.ended_at, reverse=True)[:FAILURES_SHOWN])
