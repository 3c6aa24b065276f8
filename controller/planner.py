"""One reconcile, decided: from the run, its plan, what is observed and what is remembered, to actions and status. Pure.

    judge      each dead worker once; release what it held; forget it one look later
    goal       succeeded, failed, suspended, finalizing, circuit open, or running
    stop       workers that the goal has no use for, and those that hang
    start      min(workers.count, shards held + shards that can be claimed now), one when the breaker is half-open

A dead worker is forgotten only by the look after the one that judged it: what it claimed between our reading of the
manifests and its end has come to light by then, and is released with the evidence of this very death.

An open breaker starts nobody and stops those that hold no shard. Workers that hold one go on: they have what it takes
to make progress, which closes the breaker, and if they have not, they end by themselves.

Truth is in the manifests alone; replaying a decision after a crash between any two of its actions changes nothing, since
releases are conditional puts over the observed version, and names of workers stay the same until they have ended.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from contract.manifest import ShardManifest, ShardStatus, is_claimable
from contract.names import ConditionType, Phase
from contract.plan import Plan
from controller.actions import Action, Decision, Finalize, ForgetWorker, KeepLog, StartWorker, StopWorker
from controller.api import InferenceRun, memory_limit, most_memory
from controller.breaker import (
    BreakerState,
    RunBreaker,
    node_progressed,
    nodes_remembered,
    nodes_to_avoid,
    run_state,
)
from controller.checkpoint_interval import interval_s, measured_cost
from controller.conditions import Condition, merged
from controller.consequences import release
from controller.eviction_rate import with_time
from controller.judgement import judged, spread, the_dead, with_restarts_counted
from controller.memory import JUDGED_KEPT, SAMPLE_S, SAMPLES_KEPT, Idle, RunMemory, forgiven
from controller.observed import Intent, Observed, WorkerState
from controller.status import (
    CheckpointStatus,
    RunStatus,
    ShardCounts,
    WorkerCounts,
    final_progress,
    goodput,
    progress,
    restart_counts,
    sample,
    shard_counts,
)

MAX_NAME_LENGTH = 63
"""A pod's name is its host name too."""
MAX_LOGS = 20
"""Logs kept at one look: of hundreds of workers that fail together, one says as much as the next."""
MAX_STARTS = 50
"""Workers started at one look. With the next look FOLLOW_UP_S later that is no limit in ordinary times; when a whole cluster
loses its nodes, it keeps the look short and the API server answering."""
FOLLOW_UP_S = 0.5
"""When something was decided that the next look must see."""
RESYNC_S = 10.0
"""When nothing is due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Goal:
    """What the run should be doing."""

    phase: Phase
    reason: str
    """CamelCase, for conditions."""
    message: str = ""
    stops_all: Intent | None = None
    stops_idle: Intent | None = None
    """Stop the workers that hold no shard."""
    max_workers: int = 0


def plan(*, run: InferenceRun, plan: Plan | None, observed: Observed, memory: RunMemory, now: datetime) -> Decision:
    """What to do next, what to remember, and what to show. `Decision` says how to apply it.

    Args:
        run: the resource.
        plan: shards of the current generation; None = not planned yet.
        observed: manifests and workers; see `Observed` for the order in which to read them.
        memory: of the last decision; `RunMemory()` is a safe start.
        now: the instant of the observation.
    """
    if plan is None:
        goal = _Goal(phase=Phase.PLANNING, reason="Planning", message="the input is being listed and cut into shards")
        memory = replace(memory, conditions=_conditions(run, goal, ShardCounts(), memory, now, is_planned=False))
        status = RunStatus(
            phase=goal.phase,
            message=goal.message,
            observed_generation=run.resource_generation,
            conditions=memory.conditions,
        )
        return Decision(actions=(), memory=memory, status=status, requeue_after_s=RESYNC_S)
    was_judged = frozenset(memory.judged)
    memory = _looked(run, plan, observed, memory, now)
    actions: list[Action] = []
    dead = the_dead(observed)
    for item in dead:
        verdict, memory = judged(
            item, manifests=observed.manifests, memory=memory, policy=run.spec.failure_policy, now=now
        )
        actions.extend(
            release(
                found,
                verdict,
                flight=item.evidence.flight,
                policy=run.spec.failure_policy,
                max_tokens_per_batch=run.spec.model.max_tokens_per_batch,
                memory_limit=memory_limit(run.spec.workers.template),
                now=now,
                jitter=spread(item.uid, found.shard, found.epoch),
            )
            for found in item.held
        )
        if item.worker is not None and not item.held and item.uid in was_judged:
            is_failure = (verdict.is_counted or verdict.is_blind) and item.evidence.has_started
            if is_failure and sum(isinstance(action, KeepLog) for action in actions) < MAX_LOGS:
                actions.append(KeepLog(name=item.name, uid=item.uid))
            actions.append(ForgetWorker(name=item.name, uid=item.uid))
    memory = with_restarts_counted(memory, observed)
    goal = _goal(run, plan, observed, memory, now)
    desired = _desired(plan, observed, goal, now)
    stops = _stops(run, observed, goal, memory, now)
    checkpoint = _checkpoint(run, observed, memory)
    starts = _starts(
        run,
        observed,
        memory,
        now,
        desired=desired,
        leaving=frozenset(item.uid for item in stops),
        checkpoint_every_s=float(checkpoint.every_s) if run.spec.is_interval_adapted else None,
    )
    actions.extend((*stops, *starts))
    if goal.phase is Phase.FINALIZING:
        actions.append(Finalize())
    memory = _bounded(memory, observed, run, now)
    memory = replace(
        memory,
        conditions=_conditions(
            run, goal, shard_counts(plan, observed.manifests), memory, now, observed=observed, is_planned=True
        ),
    )
    return Decision(
        actions=tuple(actions),
        memory=memory,
        status=_status(run, plan, observed, memory, goal, now, desired=desired, checkpoint=checkpoint),
        requeue_after_s=_requeue_after_s(run, observed, memory, goal, now, is_busy=bool(actions or dead)),
    )


def worker_name(run: str, slot: int, attempt: int) -> str:
    """`<run>-<slot>-<attempt>`; a long run name is cut and told apart by a hash. Pure."""
    name = f"{run}-{slot}-{attempt}"
    if len(name) <= MAX_NAME_LENGTH:
        return name
    tail = f"-{hashlib.sha256(run.encode()).hexdigest()[:8]}-{slot}-{attempt}"
    return run[: MAX_NAME_LENGTH - len(tail)].rstrip("-.") + tail


def _looked(run: InferenceRun, plan: Plan, observed: Observed, memory: RunMemory, now: datetime) -> RunMemory:
    """Memory after a look at the manifests: progress closes breakers and clears what was held against the run."""
    if memory.resource_generation not in {None, run.resource_generation}:
        memory = forgiven(memory)
    latest = sample(plan, observed.manifests, now=now)
    mark = latest.records + sum(found.status is ShardStatus.COMPLETE for found in observed.manifests.values())
    if memory.progress_mark is not None and mark > memory.progress_mark:
        memory = replace(memory, breaker=RunBreaker(), deaths=(), num_unexplained_kills=0)
    nodes = memory.nodes
    for found in observed.manifests.values():
        has_committed = bool(found.checkpoints) and found.checkpoints[-1].epoch == found.epoch
        if found.owner is not None and found.claimed_at is not None and has_committed:
            nodes = node_progressed(nodes, node=found.owner.node, claimed_at=found.claimed_at)
    samples = memory.samples
    if not samples or (now - samples[-1].at).total_seconds() >= SAMPLE_S:
        samples = (*samples, latest)[-SAMPLES_KEPT:]
    started_at = None if run.spec.is_suspended else memory.started_at or now
    num_exposed = sum(
        worker.is_live and worker.started_at is not None and not worker.is_on_demand for worker in observed.workers
    )
    return replace(
        memory,
        resource_generation=run.resource_generation,
        progress_mark=mark,
        nodes=nodes,
        samples=samples,
        started_at=started_at,
        eviction_rate=with_time(memory.eviction_rate, num_workers=num_exposed, now=now),
    )


def _goal(run: InferenceRun, plan: Plan, observed: Observed, memory: RunMemory, now: datetime) -> _Goal:
    spec, policy = run.spec, run.spec.failure_policy
    if observed.is_finalized:
        return _Goal(phase=Phase.SUCCEEDED, reason="Succeeded", stops_all=Intent.RUN_ENDED)
    failure = _run_failure(run, plan, observed, memory, now)
    if failure is not None:
        reason, message = failure
        return _Goal(phase=Phase.FAILED, reason=reason, message=message, stops_all=Intent.RUN_ENDED)
    if spec.is_suspended:
        return _Goal(phase=Phase.SUSPENDED, reason="Suspended", stops_all=Intent.SUSPENDED)
    if _are_all_final(plan, observed.manifests):
        return _Goal(phase=Phase.FINALIZING, reason="Finalizing")
    state = run_state(memory.breaker, now)
    if state is BreakerState.CLOSED:
        is_waiting = not any(worker.state in {WorkerState.RUNNING, WorkerState.DRAINING} for worker in observed.workers)
        phase = Phase.PENDING if is_waiting and not observed.manifests else Phase.RUNNING
        return _Goal(phase=phase, reason="Running", message=_waiting(observed), max_workers=spec.workers.count)
    opening = f"opening {memory.breaker.num_openings} of at most {policy.run_breaker.max_openings}"
    if state is BreakerState.HALF_OPEN:
        return _Goal(
            phase=Phase.CIRCUIT_OPEN,
            reason="Probing",
            message=f"one worker tries ({opening}); it opened on: {memory.breaker.reason}",
            max_workers=min(1, spec.workers.count),
        )
    return _Goal(
        phase=Phase.CIRCUIT_OPEN,
        reason="TooManyFailures",
        message=f"no worker is started ({opening}): {memory.breaker.reason}",
        stops_idle=Intent.CIRCUIT_OPEN,
    )


def _waiting(observed: Observed) -> str:
    """Who has not started, and why; empty when nobody waits."""
    reasons = Counter(worker.waits_for for worker in observed.workers if worker.waits_for)
    if not reasons:
        return ""
    reason, number = min(reasons.items(), key=lambda item: (-item[1], item[0]))
    others = reasons.total() - number
    return f"{number} worker(s) wait for {reason}" + (f"; {others} more for something else" if others else "")


def _run_failure(
    run: InferenceRun, plan: Plan, observed: Observed, memory: RunMemory, now: datetime
) -> tuple[str, str] | None:
    """(reason, message) of the run's failure, None when it has not failed."""
    policy, limit_s = run.spec.failure_policy, run.spec.active_deadline_s
    num_quarantined = sum(len(found.quarantined) for found in observed.manifests.values())
    if policy.max_quarantined_records is not None and num_quarantined > policy.max_quarantined_records:
        return "TooManyQuarantined", (
            f"{num_quarantined} records are in quarantine, more than maxQuarantinedRecords "
            f"{policy.max_quarantined_records}; look at them with 'inferencerun quarantine', then mend or raise it"
        )
    failed = [found for found in observed.manifests.values() if found.status is ShardStatus.FAILED]
    if _are_all_final(plan, observed.manifests) and len(failed) > policy.max_failed_shards:
        first = min(failed, key=lambda found: found.shard)
        return "TooManyFailedShards", (
            f"{len(failed)} shard(s) failed, more than maxFailedShards {policy.max_failed_shards}; shard {first.shard}: "
            f"{first.failure.detail if first.failure else 'no reason kept'}"
        )
    if memory.breaker.num_openings > policy.run_breaker.max_openings:
        return "CircuitOpenedTooOften", (
            f"the breaker opened {memory.breaker.num_openings} times with no progress between: {memory.breaker.reason}"
        )
    if limit_s is not None and memory.started_at is not None and (now - memory.started_at).total_seconds() >= limit_s:
        return "DeadlineExceeded", (
            f"not complete within activeDeadlineSeconds {limit_s:g}; raise it, and what is done stays done"
        )
    return None


def _are_all_final(plan: Plan, manifests: Mapping[int, ShardManifest]) -> bool:
    return all(shard.shard in manifests and manifests[shard.shard].is_final for shard in plan.shards)


def _held_by(observed: Observed) -> dict[str, list[ShardManifest]]:
    """Shards by the uid of who holds them."""
    held: dict[str, list[ShardManifest]] = {}
    for found in observed.manifests.values():
        if found.owner is not None:
            held.setdefault(found.owner.uid, []).append(found)
    return held


def _desired(plan: Plan, observed: Observed, goal: _Goal, now: datetime) -> int:
    """How many workers have something to do: no more than shards that are held, or could be claimed now."""
    live = {worker.uid for worker in observed.workers if worker.is_live}
    num_shards = 0
    for shard in plan.shards:
        found = observed.manifests.get(shard.shard)
        is_held = found is not None and found.owner is not None and found.owner.uid in live
        num_shards += found is None or is_held or is_claimable(found, now)
        if num_shards >= goal.max_workers:
            break
    return min(goal.max_workers, num_shards)


def _stops(
    run: InferenceRun, observed: Observed, goal: _Goal, memory: RunMemory, now: datetime
) -> tuple[StopWorker, ...]:
    held_by = _held_by(observed)
    idle_since = {item.uid: item.since for item in memory.idle}
    working = [worker for worker in observed.workers if worker.state in {WorkerState.STARTING, WorkerState.RUNNING}]
    live = {worker.node for worker in observed.workers if worker.is_live}
    avoided = set(nodes_to_avoid(memory.nodes, occupied=live, now=now))
    taken: set[int] = set()
    stops: list[StopWorker] = []
    for worker in sorted(working, key=lambda item: (item.slot, item.attempt, item.uid)):
        if goal.stops_all is not None:
            intent: Intent | None = goal.stops_all
        elif worker.slot >= run.spec.workers.count or worker.slot in taken:
            intent = Intent.SCALE_DOWN
        elif goal.stops_idle is not None and worker.uid not in held_by:
            intent = goal.stops_idle
        elif not worker.node and not set(worker.avoids) <= avoided:
            intent = Intent.AVOIDS_IN_VAIN
        else:
            held = held_by.get(worker.uid, ())
            intent = _overdue(run, held, idle_since=idle_since.get(worker.uid), now=now)
        taken.add(worker.slot)
        if intent is not None:
            stops.append(StopWorker(name=worker.name, uid=worker.uid, intent=intent))
    return tuple(stops)


def _overdue(
    run: InferenceRun, held: Sequence[ShardManifest], *, idle_since: datetime | None, now: datetime
) -> Intent | None:
    """Whether a worker has had its time: with one shard, or with nothing to show for it."""
    stall_s = _stall_s(run)
    if idle_since is not None and (now - idle_since).total_seconds() >= stall_s:
        return Intent.STALLED
    limit_s = run.spec.workers.attempt_timeout_s
    for found in held:
        if found.claimed_at is None:
            continue
        if limit_s is not None and (now - found.claimed_at).total_seconds() >= limit_s:
            return Intent.ATTEMPT_TIMEOUT
        commits = [item.created_at for item in found.checkpoints if item.epoch == found.epoch]
        if (now - max((found.claimed_at, *commits))).total_seconds() >= stall_s:
            return Intent.STALLED
    return None


def _stall_s(run: InferenceRun) -> float:
    """Seconds without a commit after which a worker must be hanging as a whole.

    Its own no-progress timeout and its emergency checkpoint are both due by then, twice over.
    """
    return 2 * (run.spec.workers.no_progress_timeout_s + run.spec.checkpoint.emergency_seconds)


def _starts(
    run: InferenceRun,
    observed: Observed,
    memory: RunMemory,
    now: datetime,
    *,
    desired: int,
    leaving: frozenset[str],
    checkpoint_every_s: float | None,
) -> tuple[StartWorker, ...]:
    """Workers for free slots; those that drain or are about to (`leaving`) keep their slots and do not count."""
    live = [worker for worker in observed.workers if worker.is_live]
    num_staying = sum(worker.state is not WorkerState.DRAINING and worker.uid not in leaving for worker in live)
    num_missing = desired - num_staying
    occupied = {worker.slot for worker in live}
    avoid = nodes_to_avoid(memory.nodes, occupied={worker.node for worker in live}, now=now)
    slots = {item.slot: item for item in memory.slots}
    memory_bytes = _memory_bytes(run, observed)
    starts: list[StartWorker] = []
    for number in range(run.spec.workers.count):
        if len(starts) >= min(num_missing, MAX_STARTS):
            break
        slot = slots.get(number)
        if number in occupied or (slot is not None and slot.not_before is not None and slot.not_before > now):
            continue
        attempt = slot.attempt if slot is not None else 0
        starts.append(
            StartWorker(
                name=worker_name(run.name, number, attempt),
                slot=number,
                attempt=attempt,
                avoid_nodes=avoid,
                checkpoint_every_s=checkpoint_every_s,
                memory_bytes=memory_bytes,
            )
        )
    return tuple(starts)


def _memory_bytes(run: InferenceRun, observed: Observed) -> int | None:
    """Memory limit of whoever starts now: the most that a waiting shard needs, within what the spec allows; None = none."""
    limit, most = memory_limit(run.spec.workers.template), most_memory(run.spec)
    if limit is None or most is None:
        return None
    waiting = (found for found in observed.manifests.values() if found.status is ShardStatus.PENDING)
    # A shard remembers what it was given when more was allowed.
    return min(most, max((limit, *(found.hints.memory_bytes or 0 for found in waiting))))


def _checkpoint(run: InferenceRun, observed: Observed, memory: RunMemory) -> CheckpointStatus:
    """How often workers that start now are to write checkpoints."""
    per_hour, cost = memory.eviction_rate.per_hour, measured_cost(observed.manifests.values())
    every_s = run.spec.checkpoint.every_seconds
    if run.spec.is_interval_adapted:
        every_s = interval_s(run.spec.checkpoint, evictions_per_hour=per_hour, cost=cost)
    return CheckpointStatus(every_s=f"{every_s:g}", evictions_per_hour=f"{per_hour:.2g}", cost_s=f"{cost.stall_s:.2g}")


def _bounded(memory: RunMemory, observed: Observed, run: InferenceRun, now: datetime) -> RunMemory:
    """Memory without what no longer matters, so that it stays small."""
    present = {worker.uid for worker in observed.workers}
    known = [uid for uid in memory.judged if uid in present]
    others = [uid for uid in memory.judged if uid not in present][-JUDGED_KEPT:]
    holders = _held_by(observed)
    since = {item.uid: item.since for item in memory.idle}
    return replace(
        memory,
        judged=(*others, *known),
        nodes=nodes_remembered(memory.nodes, policy=run.spec.failure_policy.node_breaker, now=now),
        idle=tuple(
            Idle(uid=worker.uid, since=since.get(worker.uid, now))
            for worker in observed.workers
            if worker.state is WorkerState.RUNNING and worker.uid not in holders
        ),
    )


def _requeue_after_s(
    run: InferenceRun, observed: Observed, memory: RunMemory, goal: _Goal, now: datetime, *, is_busy: bool
) -> float | None:
    """Seconds until the next instant at which the decision may differ, though nothing else happens."""
    if is_busy:
        return FOLLOW_UP_S
    if goal.phase in {Phase.SUCCEEDED, Phase.FAILED} and not observed.workers:
        return None
    instants = [slot.not_before for slot in memory.slots]
    instants += [found.not_before for found in observed.manifests.values()]
    instants += [memory.breaker.retry_at, *(node.avoided_until for node in memory.nodes)]
    if memory.started_at is not None and run.spec.active_deadline_s is not None:
        instants.append(memory.started_at + timedelta(seconds=run.spec.active_deadline_s))
    due = [(instant - now).total_seconds() for instant in instants if instant is not None and instant > now]
    return min((RESYNC_S, *due))


def _status(
    run: InferenceRun,
    plan: Plan,
    observed: Observed,
    memory: RunMemory,
    goal: _Goal,
    now: datetime,
    *,
    desired: int,
    checkpoint: CheckpointStatus,
) -> RunStatus:
    latest, total_bytes = sample(plan, observed.manifests, now=now), plan.total_bytes
    is_over = goal.phase in {Phase.FINALIZING, Phase.SUCCEEDED, Phase.FAILED}
    return RunStatus(
        phase=goal.phase,
        message=goal.message,
        observed_generation=run.resource_generation,
        conditions=memory.conditions,
        progress=final_progress(latest, observed.manifests, total_bytes=total_bytes)
        if is_over
        else progress(latest, memory.samples, total_bytes=total_bytes),
        shards=shard_counts(plan, observed.manifests),
        workers=WorkerCounts(
            desired=desired,
            active=sum(worker.is_live for worker in observed.workers),
            ready=sum(worker.state is WorkerState.RUNNING for worker in observed.workers),
        ),
        restarts=restart_counts(observed, memory),
        quarantined=sum(len(found.quarantined) for found in observed.manifests.values()),
        goodput=f"{goodput(observed, memory, now=now):.2f}",
        checkpoint=checkpoint,
        last_failures=memory.last_failures,
    )


def _conditions(
    run: InferenceRun,
    goal: _Goal,
    shards: ShardCounts,
    memory: RunMemory,
    now: datetime,
    *,
    is_planned: bool,
    observed: Observed | None = None,
) -> tuple[Condition, ...]:
    num_quarantined = sum(len(found.quarantined) for found in observed.manifests.values()) if observed else 0
    avoided = nodes_to_avoid(memory.nodes, occupied=(), now=now)
    troubles = [
        text
        for number, text in (
            (shards.failed, f"{shards.failed} shard(s) failed"),
            (num_quarantined, f"{num_quarantined} record(s) in quarantine"),
            (len(avoided), f"nodes avoided: {', '.join(avoided)}"),
        )
        if number
    ]
    is_open, has_failed = goal.phase is Phase.CIRCUIT_OPEN, goal.phase is Phase.FAILED
    is_on = {
        ConditionType.ACCEPTED: (True, "Valid", ""),
        ConditionType.PLANNED: (is_planned, "Planned" if is_planned else "Planning", f"{shards.total} shards"),
        ConditionType.PROGRESSING: (goal.phase in {Phase.RUNNING, Phase.FINALIZING}, goal.reason, goal.message),
        ConditionType.SUSPENDED: (goal.phase is Phase.SUSPENDED, goal.reason, ""),
        ConditionType.CIRCUIT_OPEN: (is_open, goal.reason, goal.message if is_open else ""),
        ConditionType.DEGRADED: (bool(troubles), "Trouble" if troubles else "AsExpected", "; ".join(troubles)),
        ConditionType.COMPLETE: (goal.phase is Phase.SUCCEEDED, goal.reason, ""),
        ConditionType.FAILED: (has_failed, goal.reason, goal.message if has_failed else ""),
    }
    wanted = (
        Condition(
            type=kind,
            status="True" if value else "False",
            reason=reason,
            message=message,
            observed_generation=run.resource_generation,
        )
        for kind, (value, reason, message) in is_on.items()
    )
    return merged(memory.conditions, wanted, now=now)
