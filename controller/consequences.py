"""From a verdict to what happens next: waits, and what becomes of the shard and of the records in flight. Pure.

Strikes. A death that may be the fault of the records in flight strikes each of them. Struck once, a batch runs again as
it is; from the second strike on, its records run one by one. So a bad record costs 2 workers in its batch and 2 alone
(`2 * maxRecordStrikes`), then it is quarantined; good neighbours are cleared by the next checkpoint. A SIGKILL that the
kernel does not explain may have come from anybody, and six (`3 * maxRecordStrikes`) are asked for: random kills would
have to hit the same single record four times, with no checkpoint between, before it were blamed unjustly.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from contract.flight import Flight
from contract.manifest import Attempt, Failure, Hints, Quarantined, ShardManifest, Strike
from contract.names import ExitCode, FailureClass, QuarantineClass
from contract.ranges import Ranges
from contract.transitions import struck
from controller.actions import ReleaseShard
from controller.api import Backoff, FailurePolicy
from controller.failure_policy import Charge, Verdict, in_flight

MAX_CONDEMNED_IN_A_ROW = 7
"""Records in quarantine one after another, with none done between; one more, and the records are not to blame. Each costs
some workers when it ends its container."""


def delay_s(failure_class: FailureClass, *, num_failures: int, backoff: Backoff, jitter: float) -> float:
    """Seconds before the next try. Pure.

    Args:
        failure_class: of the last death.
        num_failures: failures in a row, that one included.
        backoff: numbers.
        jitter: in [0, 1); spreads those that fail together.
    """
    doubled = 2.0 ** min(num_failures, 30)
    match failure_class:
        case FailureClass.DONE | FailureClass.INTENDED | FailureClass.CONFIGURATION | FailureClass.CRASH_LOOP:
            return 0.0  # the run's breaker decides when
        case FailureClass.SPOT_EVICTION | FailureClass.NODE_LOST | FailureClass.GPU_HARDWARE:
            return backoff.replace_s * jitter
        case FailureClass.NODE_REJECTED:
            return min(1.0, backoff.rejected_s) + max(0.0, backoff.rejected_s - 1.0) * jitter
        case FailureClass.POISON_INPUT:
            return backoff.poison_s
        case FailureClass.IMAGE_PULL:
            return min(backoff.image_pull_cap_s, backoff.image_pull_s * doubled) * jitter
        case FailureClass.OUT_OF_MEMORY | FailureClass.DISK_PRESSURE | FailureClass.TRANSIENT:
            return min(backoff.retry_cap_s, backoff.retry_s * doubled) * jitter


def release(
    manifest: ShardManifest,
    verdict: Verdict,
    *,
    flight: Flight | None,
    policy: FailurePolicy,
    max_tokens_per_batch: int,
    memory_limit: int | None = None,
    now: datetime,
    jitter: float,
) -> ReleaseShard:
    """What becomes of a shard whose owner is dead. Pure.

    Args:
        manifest: the shard, still held by the dead worker.
        verdict: on that death.
        flight: its last words.
        policy: budgets.
        max_tokens_per_batch: the spec's token budget, which the first out-of-memory halves.
        memory_limit: bytes to which the spec limits a worker; None = it sets no limit.
        now: time of the decision.
        jitter: in [0, 1).
    """
    owner = manifest.owner
    assert owner is not None, f"shard {manifest.shard} has no owner to release it from"
    suspects = in_flight(flight, manifest) if _may_blame_records(verdict, flight) else ()
    strikes = struck(manifest.strikes, suspects)
    limit = policy.max_record_strikes * (3 if verdict.is_blind else 2)
    quarantined = _condemned(suspects, strikes, verdict, flight, limit=limit)
    # Records that are struck beyond the limit and never alone cannot be isolated: then the shard pays.
    is_charged = verdict.charged_to is Charge.SHARD or _worst(suspects, strikes) > limit
    streak = 0 if quarantined else manifest.restarts.streak + is_charged
    is_spent = is_charged and not quarantined and (verdict.is_permanent or streak > policy.max_shard_retries)
    failure = _failure(verdict, streak) if is_spent else None
    for condemned in quarantined:
        if _num_condemned_before(manifest, condemned.ordinal) >= MAX_CONDEMNED_IN_A_ROW:
            quarantined, failure = (), _hopeless(verdict, condemned)
    wait_s = (
        delay_s(verdict.failure_class, num_failures=max(1, streak), backoff=policy.backoff, jitter=jitter)
        if is_charged or verdict.charged_to is Charge.RECORDS
        else 0.0
    )
    return ReleaseShard(
        shard=manifest.shard,
        uid=owner.uid,
        epoch=manifest.epoch,
        version=manifest.version,
        attempt=Attempt(
            pod=owner.pod,
            uid=owner.uid,
            node=owner.node,
            epoch=manifest.epoch,
            failure_class=verdict.failure_class,
            evidence=verdict.evidence,
            counted=verdict.is_counted,
            ended_at=now,
            held_seconds=None if manifest.claimed_at is None else (now - manifest.claimed_at).total_seconds(),
        ),
        in_flight=suspects,
        quarantined=quarantined,
        not_before=now + timedelta(seconds=wait_s) if wait_s else None,
        hints=_hints(
            manifest,
            verdict,
            policy=policy,
            max_tokens_per_batch=max_tokens_per_batch,
            memory_limit=memory_limit,
        ),
        failure=failure,
        streak=streak,
    )


def _may_blame_records(verdict: Verdict, flight: Flight | None) -> bool:
    """Whether this kind of death can be the doing of what was in flight. A worker that drained had let go of it."""
    if flight is None or flight.exit_code == ExitCode.DRAINED:
        return False
    if verdict.failure_class in {FailureClass.OUT_OF_MEMORY, FailureClass.POISON_INPUT} or verdict.is_blind:
        return True
    # A worker that ends with a code of its own has judged its records itself, save when it hung.
    is_unspoken = flight.exit_code in {None, ExitCode.NO_PROGRESS}
    return verdict.failure_class in {FailureClass.TRANSIENT, FailureClass.CRASH_LOOP} and is_unspoken


def _worst(suspects: Ranges, strikes: tuple[Strike, ...]) -> int:
    return max(
        (item.count for item in strikes for first, last in suspects if item.first < last and first < item.next),
        default=0,
    )


def _condemned(
    suspects: Ranges, strikes: tuple[Strike, ...], verdict: Verdict, flight: Flight | None, *, limit: int
) -> tuple[Quarantined, ...]:
    """The record to quarantine: alone in flight, and struck often enough."""
    num_strikes = _worst(suspects, strikes)
    if not suspects or num_strikes < limit or flight is None or flight.first is None or flight.first_offset is None:
        return ()
    if flight.next != flight.first + 1:
        return ()  # others were in flight beside it, settled since or not
    is_memory = verdict.failure_class is FailureClass.OUT_OF_MEMORY
    return (
        Quarantined(
            ordinal=suspects[0][0],
            offset=flight.first_offset,
            id=flight.first_id,
            quarantine_class=QuarantineClass.OUT_OF_MEMORY if is_memory else QuarantineClass.POISON_INPUT,
            detail=f"{num_strikes} workers died with it in flight, the last with nothing else: {verdict.evidence}",
        ),
    )


def _num_condemned_before(manifest: ShardManifest, ordinal: int) -> int:
    """Records directly before this one that did harm as well. Those that no model was given are passed over."""
    classes = {item.ordinal: item.quarantine_class for item in manifest.quarantined}
    num_condemned = 0
    while (kind := classes.get(ordinal := ordinal - 1)) is not None:
        num_condemned += kind in {QuarantineClass.POISON_INPUT, QuarantineClass.OUT_OF_MEMORY}
    return num_condemned


def _hopeless(verdict: Verdict, last: Quarantined) -> Failure:
    detail = (
        f"more than {MAX_CONDEMNED_IN_A_ROW} records in a row did harm, and none was done between; the last, at offset "
        f"{last.offset}: {verdict.evidence}; look at the model and at the workers' memory, then 'inferencerun retry'"
    )
    return Failure(failure_class=verdict.failure_class, detail=detail)


def _hints(
    manifest: ShardManifest,
    verdict: Verdict,
    *,
    policy: FailurePolicy,
    max_tokens_per_batch: int,
    memory_limit: int | None,
) -> Hints | None:
    """Half the tokens at each shortage; from the second in a row, twice the memory too: smaller batches did not do."""
    if verdict.failure_class is not FailureClass.OUT_OF_MEMORY:
        return None
    before = manifest.hints
    budget = before.token_budget or max_tokens_per_batch
    halved = min(budget, max(policy.min_tokens_per_batch, budget // 2))
    memory = before.memory_bytes
    is_raisable = verdict.is_host_memory and manifest.restarts.streak > 0
    if is_raisable and memory_limit is not None and policy.max_memory_bytes is not None:
        raised = min(policy.max_memory_bytes, 2 * max(memory or 0, memory_limit))
        memory = raised if raised > memory_limit else memory
    return Hints(token_budget=halved, memory_bytes=memory)


def _failure(verdict: Verdict, streak: int) -> Failure:
    how_often = "" if verdict.is_permanent else f"{streak} failures in a row without progress; last: "
    advice = f"; {verdict.advice}, then 'inferencerun retry'" if verdict.advice else ""
    return Failure(failure_class=verdict.failure_class, detail=f"{how_often}{verdict.evidence}{advice}")
