"""The changes a shard manifest can undergo, each a function from one frozen version to the next. Pure.

    claim      absent or pending           -> running, epoch + 1    by a worker
    commit     running                     -> running or complete   by the owner
    release    running                     -> pending or failed     by the owner on drain, else by the coordinator
    requeue    failed, complete or pending -> pending, epoch + 1    by `inferencerun retry`, or for a corrupt checkpoint

The epoch grows when the right to write changes hands or settled records are taken back, and never falls; so whoever
still works under the old epoch is fenced by its next commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from contract.manifest import (
    ATTEMPTS_KEPT,
    HISTORY_LENGTH,
    Attempt,
    Checkpoint,
    Failure,
    Hints,
    Owner,
    Quarantined,
    Restarts,
    ShardManifest,
    ShardStatus,
    Strike,
)
from contract.plan import Shard
from contract.ranges import Ranges, count, difference, intersection, normalised, union


def first_claim(shard: Shard, *, generation: int, owner: Owner, commit_id: str, now: datetime) -> ShardManifest:
    """The first version of a manifest: the claim of a shard nobody has touched."""
    return ShardManifest(
        shard=shard.shard,
        generation=generation,
        object=shard.object,
        start=shard.start,
        end=shard.end,
        status=ShardStatus.RUNNING,
        epoch=1,
        owner=owner,
        version=1,
        commit_id=commit_id,
        history=(commit_id,),
        claimed_at=now,
    )


def claimed(
    current: ShardManifest,
    *,
    owner: Owner,
    commit_id: str,
    now: datetime,
    lost_keys: frozenset[str] = frozenset(),
) -> ShardManifest:
    """`current`, pending, taken by `owner` at the next epoch.

    Args:
        current: a claimable version.
        owner: the new owner.
        commit_id: unique id of this change.
        now: the claim's time, kept for accounting only.
        lost_keys: committed checkpoints found missing or of the wrong size: only their own records run again.
    """
    base = without_checkpoints(current, lost_keys) if lost_keys else current
    return replace(
        _next(base, current, commit_id),
        status=ShardStatus.RUNNING,
        epoch=current.epoch + 1,
        owner=owner,
        completed_by=None,
        claimed_at=now,
        not_before=None,
    )


def committed(
    current: ShardManifest,
    *,
    commit_id: str,
    checkpoint: Checkpoint | None = None,
    quarantined: Iterable[Quarantined] = (),
    records: int | None = None,
    bytes_done: int | None = None,
    hints: Hints | None = None,
) -> ShardManifest:
    """`current` with a checkpoint, newly quarantined records, or the number of records now known.

    The shard is complete, and its owner gone, as soon as every record of a fully read range is settled.
    """
    quarantine = tuple(sorted((*current.quarantined, *quarantined), key=lambda item: item.ordinal))
    has_progressed = checkpoint is not None or len(quarantine) > len(current.quarantined)
    excluded = normalised((item.ordinal, item.ordinal + 1) for item in quarantine)
    done = current.done
    if checkpoint is not None:
        done = union(done, difference(((checkpoint.first, checkpoint.next),), excluded))
    known = current.records if records is None else records
    is_complete = known is not None and count(union(done, excluded)) == known
    return replace(
        _next(current, current, commit_id),
        status=ShardStatus.COMPLETE if is_complete else current.status,
        owner=None if is_complete else current.owner,
        completed_by=current.owner if is_complete else None,
        records=known,
        done=done,
        bytes_done=current.bytes_done if bytes_done is None else max(bytes_done, current.bytes_done),
        checkpoints=(*current.checkpoints, checkpoint) if checkpoint else current.checkpoints,
        quarantined=quarantine,
        strikes=_without_settled(current.strikes, union(done, excluded)),
        restarts=replace(current.restarts, streak=0) if has_progressed else current.restarts,
        hints=hints or current.hints,
    )


def is_released(current: ShardManifest, *, uid: str, epoch: int) -> bool:
    """Whether the attempt of this pod at this epoch has been recorded already: then a replay must change nothing."""
    return any(item.uid == uid and item.epoch == epoch for item in current.attempts)


def released(
    current: ShardManifest,
    *,
    attempt: Attempt,
    commit_id: str,
    in_flight: Ranges = (),
    quarantined: Iterable[Quarantined] = (),
    not_before: datetime | None = None,
    hints: Hints | None = None,
    failure: Failure | None = None,
    streak: int | None = None,
) -> ShardManifest:
    """`current`, running, given back: owner null, attempt appended, strikes counted.

    Args:
        current: the version held by the attempt's pod.
        attempt: what became of it.
        commit_id: unique id of this change.
        in_flight: ordinals that the flight recorder named and that may be to blame; each gets a strike.
        quarantined: records judged by their strikes.
        not_before: when the shard may be claimed again; None = at once.
        hints: for the next worker; None keeps those there.
        failure: set when the budget is spent: the shard is then `failed`.
        streak: attempts charged since the last progress, as the failure policy counts them; None keeps the number.
    """
    new = tuple(sorted((*current.quarantined, *quarantined), key=lambda item: item.ordinal))
    settled = union(current.done, ((item.ordinal, item.ordinal + 1) for item in new))
    by_class = dict(current.restarts.by_class)
    by_class[attempt.failure_class.value] = by_class.get(attempt.failure_class.value, 0) + 1
    is_complete = current.records is not None and count(settled) == current.records
    if is_complete:
        status = ShardStatus.COMPLETE
    else:
        status = ShardStatus.FAILED if failure else ShardStatus.PENDING
    return replace(
        _next(current, current, commit_id),
        status=status,
        owner=None,
        quarantined=new,
        strikes=_without_settled(struck(current.strikes, in_flight), settled),
        attempts=(*current.attempts, attempt)[-ATTEMPTS_KEPT:],
        restarts=Restarts(
            total=current.restarts.total + 1,
            counted=current.restarts.counted + (1 if attempt.counted else 0),
            by_class=tuple(sorted(by_class.items())),
            streak=current.restarts.streak if streak is None else streak,
        ),
        hints=hints or current.hints,
        not_before=not_before if status is ShardStatus.PENDING else None,
        failure=failure if status is ShardStatus.FAILED else None,
    )


def requeued(
    current: ShardManifest,
    *,
    commit_id: str,
    lost_keys: frozenset[str] = frozenset(),
    retry_quarantined: bool = False,
) -> ShardManifest:
    """`current`, not running, set back to pending with a fresh budget, at the next epoch.

    Args:
        current: a version without an owner.
        commit_id: unique id of this change.
        lost_keys: checkpoints found corrupt: only their own records run again.
        retry_quarantined: take the quarantined records back too (after a fix of the model or its limits).
    """
    if current.owner is not None:
        raise ValueError(f"shard {current.shard} is held by {current.owner.pod}; release it first")
    base = without_checkpoints(current, lost_keys) if lost_keys else current
    return replace(
        _next(base, current, commit_id),
        status=ShardStatus.PENDING,
        epoch=current.epoch + 1,
        completed_by=None,
        quarantined=() if retry_quarantined else base.quarantined,
        strikes=(),
        restarts=replace(base.restarts, counted=0, streak=0),
        hints=Hints(),
        not_before=None,
        failure=None,
    )


def reset(shard: Shard, *, generation: int, epoch: int, commit_id: str) -> ShardManifest:
    """A fresh pending manifest at `epoch`, in place of one that cannot be read. Its records run again.

    `epoch` must lie above every epoch in the shard's data keys, so that no key is ever written twice.
    """
    return ShardManifest(
        shard=shard.shard,
        generation=generation,
        object=shard.object,
        start=shard.start,
        end=shard.end,
        status=ShardStatus.PENDING,
        epoch=epoch,
        owner=None,
        version=1,
        commit_id=commit_id,
        history=(commit_id,),
    )


def without_checkpoints(current: ShardManifest, keys: frozenset[str]) -> ShardManifest:
    """`current` less the named checkpoints: their records are no longer done. Not a version of its own.

    Ranges may overlap: a record quarantined when [0, 10) was committed, then retried, has a checkpoint of its own
    inside it. The latest checkpoint that covers a record holds it.
    """
    lost: Ranges = ()
    for item in current.checkpoints:
        own: Ranges = ((item.first, item.next),)
        lost = union(lost, own) if item.key in keys else difference(lost, own)
    return replace(
        current,
        checkpoints=tuple(item for item in current.checkpoints if item.key not in keys),
        done=difference(current.done, lost),
        status=ShardStatus.PENDING if current.status is ShardStatus.COMPLETE else current.status,
    )


def struck(strikes: tuple[Strike, ...], in_flight: Ranges) -> tuple[Strike, ...]:
    """One more strike on every ordinal in `in_flight`; ranges split where counts differ.

    Example: [0, 100) struck once, then [40, 41) in flight: [0,40)x1 [40,41)x2 [41,100)x1.
    """
    counted: list[Strike] = []
    fresh = in_flight
    for strike in strikes:
        own: Ranges = ((strike.first, strike.next),)
        counted.extend(Strike(first=a, next=b, count=strike.count + 1) for a, b in intersection(own, in_flight))
        counted.extend(Strike(first=a, next=b, count=strike.count) for a, b in difference(own, in_flight))
        fresh = difference(fresh, own)
    counted.extend(Strike(first=a, next=b, count=1) for a, b in fresh)
    return tuple(sorted(counted, key=lambda item: item.first))


def _without_settled(strikes: tuple[Strike, ...], settled: Ranges) -> tuple[Strike, ...]:
    return tuple(
        Strike(first=a, next=b, count=strike.count)
        for strike in strikes
        for a, b in difference(((strike.first, strike.next),), settled)
    )


def _next(base: ShardManifest, current: ShardManifest, commit_id: str) -> ShardManifest:
    return replace(
        base,
        version=current.version + 1,
        commit_id=commit_id,
        history=(*current.history, commit_id)[-HISTORY_LENGTH:],
    )
