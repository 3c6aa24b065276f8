"""controller.planner: one reconcile, rule by rule. The simulation drives many to convergence."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from contract.manifest import Hints, ShardManifest, ShardStatus
from contract.names import ConditionType, FailureClass, Phase
from contract.transitions import committed
from controller.actions import Action, Decision, Finalize, ForgetWorker, KeepLog, ReleaseShard, StartWorker, StopWorker
from controller.api import InferenceRun
from controller.breaker import NodeBreaker, RunBreaker
from controller.memory import RunMemory, Slot
from controller.observed import Evidence, Intent, NodeState, Observed, WorkerState, WorkerView
from controller.planner import FOLLOW_UP_S, MAX_LOGS, MAX_STARTS, RESYNC_S, plan, worker_name
from tests import make

EVICTED = Evidence(exit_code=143, ran_s=60)
CRASHED = Evidence(exit_code=1, ran_s=60)


def _decide(
    observed: Observed | None = None,
    *,
    run: InferenceRun | None = None,
    memory: RunMemory | None = None,
    now: datetime = make.NOW,
    num_shards: int = 4,
) -> Decision:
    return plan(
        run=run or make.run(),
        plan=make.plan(num_shards),
        observed=observed or make.observed(),
        memory=memory or RunMemory(),
        now=now,
    )


def _starts(decision: Decision) -> list[str]:
    return [item.name for item in decision.actions if isinstance(item, StartWorker)]


def _stops(decision: Decision) -> list[tuple[str, Intent]]:
    return [(item.uid, item.intent) for item in decision.actions if isinstance(item, StopWorker)]


def _releases(decision: Decision) -> list[ReleaseShard]:
    return [item for item in decision.actions if isinstance(item, ReleaseShard)]


def _status_of(decision: Decision, kind: ConditionType) -> str:
    return next(item.status for item in decision.status.conditions if item.type is kind)


def _looks(*looks: Observed, run: InferenceRun | None = None) -> list[dict[str, int]]:
    """What `status.restarts.byClass` says after each of these looks."""
    memory, told = RunMemory(), []
    for number, look in enumerate(looks):
        decision = _decide(look, run=run, memory=memory, now=make.later(number))
        memory = decision.memory
        told.append(dict(decision.status.restarts.by_class))
    return told


# Counting


@pytest.mark.parametrize(
    ("seen", "counted_as"),
    [
        (Evidence(exit_code=143, intent=Intent.SCALE_DOWN), "Intended"),
        (Evidence(exit_code=143, intent=Intent.SUSPENDED), "Intended"),
        (Evidence(exit_code=143, has_termination_target=True), "Intended"),
        (Evidence(exit_code=143, intent=Intent.ATTEMPT_TIMEOUT), "Transient"),
        (Evidence(exit_code=143), "SpotEviction"),
        (Evidence(has_deletion_timestamp=True), "SpotEviction"),
    ],
    ids=["scaled down", "suspended", "its queue ended it", "took too long", "evicted", "deleted, and no code was seen"],
)
@pytest.mark.parametrize("is_late", [False, True], ids=["", "manifests are read before it ends"])
def test_a_drain_is_counted_as_what_it_was(seen: Evidence, counted_as: str, *, is_late: bool) -> None:
    """A worker that drains gives its shard back as evicted: it cannot tell who asked. Its pod can, once it has ended."""
    held = make.held()
    assert held.owner is not None
    draining = make.worker(0, uid=held.owner.uid, state=WorkerState.DRAINING)
    ended = make.worker(0, uid=held.owner.uid, evidence=seen)
    given_back = make.pending(held)

    told = _looks(
        make.observed(held, workers=(draining,)),
        make.observed(given_back, workers=(draining,)),
        make.observed(held if is_late else given_back, workers=(ended,)),
        make.observed(given_back, workers=(ended,)),
        make.observed(given_back),
        make.observed(given_back),
    )

    assert told[:2] == [{}, {}]
    assert told[2] == ({} if is_late else {counted_as: 1})
    assert told[3:] == [{counted_as: 1}] * 3


# Starting


def test_a_fresh_run_starts_its_workers() -> None:
    """Nothing there yet: as many workers as the spec asks for, each with its slot's name."""
    decision = _decide()

    assert _starts(decision) == ["run-0-0", "run-1-0"]
    assert decision.status.phase is Phase.PENDING


def test_without_a_plan_nothing_is_started() -> None:
    """Until the input is cut there is nothing to work on."""
    decision = plan(run=make.run(), plan=None, observed=make.observed(), memory=RunMemory(), now=make.NOW)

    assert decision.actions == ()
    assert decision.status.phase is Phase.PLANNING
    assert _status_of(decision, ConditionType.PLANNED) == "False"


@pytest.mark.parametrize(
    ("manifests", "expected"),
    [
        ((), 4),
        ((make.complete(0), make.complete(1), make.complete(2)), 1),
        ((make.complete(0), make.failed(1)), 2),
        ((make.complete(0), make.complete(1), make.pending(make.held(2), not_before=make.later(9))), 1),
        ((make.complete(0), make.complete(1), make.pending(make.held(2), not_before=make.NOW)), 2),
    ],
)
def test_no_more_workers_than_shards_that_can_be_worked_on(manifests: tuple[ShardManifest, ...], expected: int) -> None:
    """Final shards, and those that must wait, need no worker."""
    decision = _decide(make.observed(*manifests), run=make.run({"workers": {"count": 9}}))

    assert len(_starts(decision)) == decision.status.workers.desired == expected


def test_a_full_crew_starts_nobody() -> None:
    """Live workers, starting ones included, keep their slots."""
    workers = (make.worker(0), make.worker(1, state=WorkerState.STARTING))

    assert _decide(make.observed(workers=workers)).actions == ()


def test_a_free_slot_is_filled() -> None:
    """A worker that is missing in the middle is replaced in its own slot."""
    workers = (make.worker(0), make.worker(2))

    assert _starts(_decide(make.observed(workers=workers), run=make.run({"workers": {"count": 3}}))) == ["run-1-0"]


def test_a_draining_worker_keeps_its_slot() -> None:
    """Its replacement waits until it has ended: locally its GPU is not free before."""
    workers = (make.worker(0), make.worker(1, state=WorkerState.DRAINING))

    assert _starts(_decide(make.observed(workers=workers))) == []


def test_the_name_stays_until_its_worker_has_been_seen_to_end() -> None:
    """A start that is repeated, since the listing was late, meets the worker it started before."""
    first = _decide()

    again = _decide(memory=first.memory)

    assert _starts(again) == _starts(first)


def test_the_next_attempt_has_another_name() -> None:
    """Once a worker has ended its slot goes on to the next attempt, after the wait of its class."""
    memory = _decide(make.observed(workers=(make.worker(0, evidence=EVICTED), make.worker(1)))).memory

    decision = _decide(make.observed(workers=(make.worker(1),)), memory=memory, now=make.later(6))

    assert _starts(decision) == ["run-0-1"]


def test_a_slot_waits_after_a_failure() -> None:
    """The replacement comes when the wait is over, and the planner asks to be called then."""
    memory = RunMemory(slots=(Slot(slot=0, attempt=1, not_before=make.later(3)),))

    decision = _decide(make.observed(workers=(make.worker(1),)), memory=memory)

    assert _starts(decision) == []
    assert decision.requeue_after_s == 3
    assert _starts(_decide(make.observed(workers=(make.worker(1),)), memory=memory, now=make.later(3))) == ["run-0-1"]


def test_a_bad_node_is_avoided() -> None:
    """A hardware fault keeps the next workers off that node for an hour."""
    broken = make.worker(0, node="bad", evidence=Evidence(exit_code=77))

    decision = _decide(make.observed(workers=(broken, make.worker(1))), run=make.run({"workers": {"count": 3}}))

    (start,) = (item for item in decision.actions if isinstance(item, StartWorker))
    assert start.avoid_nodes == ("bad",)
    assert _status_of(decision, ConditionType.DEGRADED) == "True"


def test_a_worker_that_waits_for_a_node_need_not_avoid_what_nobody_avoids_any_more() -> None:
    """Its affinity stays as it was made: with no other node it would wait for ever, and the bad one was never probed."""
    node = NodeBreaker(node="bad", scores=((make.NOW, 3),), avoided_until=make.later(60))
    waiting = replace(make.worker(0, node="", state=WorkerState.STARTING), avoids=("bad",))
    placed = replace(make.worker(0, node="good", state=WorkerState.STARTING), avoids=("bad",))

    def stops(worker: WorkerView, *, after_s: float) -> list[Intent]:
        look = make.observed(workers=(worker,))
        decision = _decide(look, memory=RunMemory(nodes=(node,)), now=make.later(after_s))
        return [item.intent for item in decision.actions if isinstance(item, StopWorker)]

    assert stops(waiting, after_s=59) == []
    assert stops(waiting, after_s=60) == [Intent.AVOIDS_IN_VAIN]
    assert stops(placed, after_s=60) == []


@pytest.mark.parametrize(
    ("run", "expected"),
    [("run", "run-3-7"), ("r" * 59, "r" * 59 + "-3-7"), ("r" * 60, None), ("r" * 49 + "." + "r" * 99, None)],
)
def test_worker_names_fit_a_host_name(run: str, expected: str | None) -> None:
    """A name that is too long is cut and told apart by a hash; no cut leaves a dot before the dash."""
    name = worker_name(run, 3, 7)

    assert name == (expected or name)
    assert len(name) <= 63
    assert name.endswith("-3-7")
    assert ".-" not in name


def test_long_names_stay_different() -> None:
    """Two long run names with the same beginning do not share a worker's name."""
    assert worker_name("r" * 80 + "a", 0, 0) != worker_name("r" * 80 + "b", 0, 0)


# Stopping


@pytest.mark.parametrize(
    ("changes", "observed", "intent", "phase"),
    [
        ({"suspend": True}, {}, Intent.SUSPENDED, Phase.SUSPENDED),
        ({}, {"is_finalized": True}, Intent.RUN_ENDED, Phase.SUCCEEDED),
    ],
)
def test_all_are_stopped(changes: dict[str, Any], observed: dict[str, Any], intent: Intent, phase: Phase) -> None:
    """Suspension and the end of the run drain every worker, once."""
    workers = (make.worker(0), make.worker(1, state=WorkerState.STARTING), make.worker(2, state=WorkerState.DRAINING))

    decision = _decide(make.observed(workers=workers, **observed), run=make.run(changes))

    assert _stops(decision) == [("uid-0", intent), ("uid-1", intent)]
    assert decision.status.phase is phase
    assert decision.status.workers.desired == 0


def test_scaling_down_drains_the_highest_slots() -> None:
    """Slots beyond the new count go; the others are left in peace."""
    workers = tuple(make.worker(slot) for slot in range(4))

    assert _stops(_decide(make.observed(workers=workers))) == [
        ("uid-2", Intent.SCALE_DOWN),
        ("uid-3", Intent.SCALE_DOWN),
    ]


def test_of_two_workers_in_a_slot_the_later_goes() -> None:
    """Two controllers alive for a moment may have filled a slot twice."""
    workers = (make.worker(0), make.worker(0, uid="twin", attempt=1), make.worker(1))

    assert _stops(_decide(make.observed(workers=workers))) == [("twin", Intent.SCALE_DOWN)]


def test_an_idle_worker_at_the_tail_is_left_to_end_by_itself() -> None:
    """With one shard left, the worker without it is not stopped: it exits when it finds nothing, and might have claimed."""
    manifests = (make.held(0), make.complete(1), make.complete(2), make.complete(3))

    assert _decide(make.observed(*manifests, workers=(make.worker(0), make.worker(1)))).actions == ()


@pytest.mark.parametrize(("seconds", "expected"), [(3599, []), (3601, [("uid-0", Intent.ATTEMPT_TIMEOUT)])])
def test_an_attempt_has_its_time(seconds: float, expected: list[tuple[str, Intent]]) -> None:
    """A worker that holds one shard for longer than allowed is drained, commits or not."""
    manifest = make.with_checkpoint(make.held(), 0, 10, at=make.later(3590))
    run = make.run({"workers": {"attemptTimeoutSeconds": 3600, "count": 1}})

    assert (
        _stops(_decide(make.observed(manifest, workers=(make.worker(0),)), run=run, now=make.later(seconds)))
        == expected
    )


@pytest.mark.parametrize(
    ("commit_at", "seconds", "expected"),
    [(0, 2399, []), (0, 2401, [("uid-0", Intent.STALLED)]), (100, 2401, [])],
)
def test_a_worker_that_commits_nothing_for_long_is_stopped(
    commit_at: float, seconds: float, expected: list[tuple[str, Intent]]
) -> None:
    """Twice its no-progress timeout and emergency checkpoint without a commit: the whole worker hangs."""
    manifest = make.with_checkpoint(make.held(), 0, 10, at=make.later(commit_at))

    decision = _decide(
        make.observed(manifest, workers=(make.worker(0),)),
        run=make.run({"workers": {"count": 1}}),
        now=make.later(seconds),
    )

    assert _stops(decision) == expected


def test_a_worker_that_never_claims_is_stopped() -> None:
    """A worker that hangs while it loads the model must not hold its GPU for ever."""
    look = make.observed(make.held(0, uid="other"), workers=(make.worker(0), make.worker(1, uid="other")))
    memory = _decide(look).memory

    assert _stops(_decide(look, memory=memory, now=make.later(2399))) == []
    assert ("uid-0", Intent.STALLED) in _stops(_decide(look, memory=memory, now=make.later(2401)))


# The dead


def test_a_dead_workers_shard_is_released_before_it_is_forgotten() -> None:
    """First look: judge and release. Second look, with the shard free: forget."""
    dead = make.worker(0, evidence=EVICTED)
    manifest = make.held()

    first = _decide(make.observed(manifest, workers=(dead, make.worker(1))))
    (release,) = _releases(first)
    released = release.applied(manifest, commit_id="x")
    assert released is not None
    second = _decide(make.observed(released, workers=(dead, make.worker(1))), memory=first.memory)

    assert [type(item) for item in first.actions] == [ReleaseShard]
    assert release.attempt.failure_class is FailureClass.SPOT_EVICTION
    assert [item for item in second.actions if isinstance(item, ForgetWorker)] == [
        ForgetWorker(name="run-0-0", uid="uid-0")
    ]
    assert first.requeue_after_s == FOLLOW_UP_S


def test_a_claim_that_comes_to_light_late_is_released_with_its_evidence() -> None:
    """A worker that claims after our reading and dies before our listing is not forgotten with its shard in hand."""
    dead = make.worker(0, evidence=Evidence(exit_code=78))

    first = _decide(make.observed(workers=(dead, make.worker(1))))
    second = _decide(make.observed(make.held(), workers=(dead, make.worker(1))), memory=first.memory)

    assert [item for item in first.actions if isinstance(item, ForgetWorker)] == []
    (release,) = _releases(second)
    assert release.attempt.failure_class is FailureClass.OUT_OF_MEMORY
    assert [item for item in second.actions if isinstance(item, ForgetWorker)] == []


@pytest.mark.parametrize(("is_complete", "expected"), [(True, [0]), (False, [])])
def test_a_vanished_owner_is_told_only_by_a_complete_look(is_complete: bool, expected: list[int]) -> None:  # noqa: FBT001
    """A late or partial listing never takes a shard from a worker that may live."""
    decision = _decide(make.observed(make.held(), workers=(make.worker(1),), is_complete=is_complete))

    assert [item.shard for item in _releases(decision)] == expected
    assert all(item.attempt.failure_class is FailureClass.NODE_LOST for item in _releases(decision))


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.RUNNING, WorkerState.DRAINING])
def test_a_live_owner_keeps_its_shard(state: WorkerState) -> None:
    """Whatever a worker that has not ended is doing, its shard stays its own."""
    assert _releases(_decide(make.observed(make.held(), workers=(make.worker(0, state=state),)))) == []


def test_a_death_is_counted_once_however_often_it_is_seen() -> None:
    """Replays of the same observation change no counter."""
    look = make.observed(workers=(make.worker(0, evidence=CRASHED), make.worker(1)))

    first = _decide(look)
    second = _decide(look, memory=first.memory, now=make.later(1))

    assert first.status.restarts.total == second.status.restarts.total == 1
    assert first.status.restarts.by_class == {"Transient": 1}
    assert len(second.status.last_failures) == 1
    assert second.memory.breaker == first.memory.breaker
    assert second.memory.worker_seconds == 60


def test_a_restart_that_the_manifest_remembers_is_not_counted_twice() -> None:
    """A worker that drained has written its attempt into the manifest itself."""
    look = make.observed(make.pending(), workers=(make.worker(0, evidence=EVICTED),))

    assert _decide(look).status.restarts.total == 1


def test_a_restart_is_counted_in_one_place_though_its_shard_comes_to_light_late() -> None:
    """Counted as shardless first, then by the manifest; and kept when the worker is gone and no manifest knows it."""
    workers = (make.worker(0, evidence=CRASHED), make.worker(1, evidence=CRASHED))
    first = _decide(make.observed(workers=workers))
    manifest = make.held()
    (release,) = _releases(_decide(make.observed(manifest, workers=workers), memory=first.memory))
    released = release.applied(manifest, commit_id="x")
    assert released is not None

    late = _decide(make.observed(released, workers=workers[:1], is_complete=False), memory=first.memory)
    gone = _decide(make.observed(released), memory=late.memory)

    assert [item.status.restarts.total for item in (first, late, gone)] == [2, 2, 2]
    assert gone.memory.restarts_by_class == (("Transient", 1),)
    assert gone.memory.shardless == ()


def test_a_worker_that_committed_clears_its_node() -> None:
    """A probe that comes and goes between two looks has still shown that the node works."""
    node = NodeBreaker(node="node-a", scores=((make.NOW, 3),), avoided_until=make.NOW)
    seen = Evidence(exit_code=0, ran_s=60, flight=make.flight(shard=None, exit_code=0, has_committed=True))
    look = make.observed(workers=(make.worker(0, evidence=seen),))

    assert _decide(look, memory=RunMemory(nodes=(node,)), now=make.later(61)).memory.nodes == ()
    assert _decide(look, memory=RunMemory(nodes=(node,)), now=make.later(59)).memory.nodes == (node,)


def test_of_two_shards_the_one_in_flight_is_judged() -> None:
    """A worker that dies with two shards in hand is judged by the one it was computing."""
    seen = Evidence(signal=11, flight=make.flight(3, 5, shard=1))
    manifests = (make.held(0), make.held(1))

    released = _releases(_decide(make.observed(*manifests, workers=(make.worker(0, evidence=seen),))))

    assert [(item.shard, item.attempt.failure_class, item.in_flight) for item in released] == [
        (0, FailureClass.POISON_INPUT, ()),
        (1, FailureClass.POISON_INPUT, ((3, 5),)),
    ]


def test_an_unclear_flight_is_judged_by_the_first_shard() -> None:
    """Last words about another shard do not keep a verdict from being reached."""
    seen = Evidence(signal=11, flight=make.flight(3, 5, shard=3))

    (release,) = _releases(_decide(make.observed(make.held(0), workers=(make.worker(0, evidence=seen),))))

    assert (release.attempt.failure_class, release.in_flight) == (FailureClass.TRANSIENT, ())


def test_a_crash_right_after_the_last_commit_is_no_failure() -> None:
    """A worker that dies once its shard is complete has done what it was for."""
    seen = Evidence(signal=11, flight=make.flight(shard=0, has_committed=True))

    decision = _decide(make.observed(make.complete(0), workers=(make.worker(0, evidence=seen),)))

    assert decision.status.last_failures == ()


def test_done_and_intended_ends_are_no_failures() -> None:
    """A worker that found no work, or that we stopped, is not among the last failures."""
    ends = (
        Evidence(exit_code=0, flight=make.flight(shard=None, exit_code=0)),
        Evidence(exit_code=143, intent=Intent.SCALE_DOWN),
    )
    workers = tuple(make.worker(slot, evidence=seen) for slot, seen in enumerate(ends))

    decision = _decide(make.observed(workers=workers))

    assert decision.status.last_failures == ()
    assert decision.status.restarts.total == 0


def test_an_orphan_of_an_earlier_coordinator_takes_no_slot() -> None:
    """A worker outside all slots is judged and released, and moves no slot on."""
    orphan = replace(make.worker(0, uid="orphan", evidence=EVICTED), slot=-1)

    decision = _decide(make.observed(make.held(uid="orphan"), workers=(orphan,)))

    assert len(_releases(decision)) == 1
    assert _starts(decision) == ["run-0-0", "run-1-0"]


# Breakers


def _crashes(num_deaths: int, *, evidence: Evidence = CRASHED, memory: RunMemory | None = None) -> Decision:
    workers = tuple(make.worker(slot, evidence=evidence) for slot in range(num_deaths))
    return _decide(make.observed(workers=workers), run=make.run({"workers": {"count": 9}}), memory=memory)


def test_a_configuration_error_stops_new_workers_and_says_what_to_mend() -> None:
    """Exit 64 before any claim opens the breaker at once; the status says why and what to do."""
    decision = _crashes(
        1, evidence=Evidence(exit_code=64, flight=make.flight(shard=None, detail="model.source: no such file"))
    )

    assert _starts(decision) == []
    assert decision.status.phase is Phase.CIRCUIT_OPEN
    assert "no such file" in decision.status.message
    assert _status_of(decision, ConditionType.CIRCUIT_OPEN) == "True"
    assert decision.status.workers.desired == 0


@pytest.mark.parametrize(("num_deaths", "phase"), [(2, Phase.PENDING), (3, Phase.CIRCUIT_OPEN)])
def test_a_crash_loop_opens_the_breaker(num_deaths: int, phase: Phase) -> None:
    """Three workers that end in the same way before any commit are a crash loop."""
    decision = _crashes(num_deaths)

    assert decision.status.phase is phase
    assert ("CrashLoop" in decision.status.restarts.by_class) is (phase is Phase.CIRCUIT_OPEN)


def test_spot_evictions_never_open_anything() -> None:
    """A hundred evictions in a row are free: no breaker, no node score, nothing counted."""
    memory = RunMemory()
    for attempt in range(100):
        worker = make.worker(0, uid=f"u{attempt}", attempt=attempt, evidence=EVICTED)
        decision = _decide(make.observed(workers=(worker,)), memory=memory, now=make.later(attempt))
        memory = decision.memory

    assert decision.status.restarts.counted == 0
    assert decision.status.restarts.total == 100
    assert memory.breaker == RunBreaker()
    assert memory.nodes == ()
    assert len(memory.last_failures) == 10


def test_kills_from_outside_count_only_when_no_commit_ever_comes_between() -> None:
    """Twenty kills pass; the next counts; a commit starts the count anew."""
    kill = Evidence(signal=9)
    memory = RunMemory(progress_mark=0, num_unexplained_kills=20)

    without = _decide(make.observed(workers=(make.worker(0, evidence=kill),)), memory=memory)
    having = _decide(
        make.observed(make.pending(make.held(done=5)), workers=(make.worker(0, evidence=kill),)), memory=memory
    )

    assert without.status.restarts.counted == 1
    assert having.status.restarts.counted == 0
    assert having.memory.num_unexplained_kills == 1


OPEN = RunMemory(progress_mark=0, breaker=RunBreaker(num_openings=1, retry_at=make.later(60), reason="exit 64"))


def test_an_open_breaker_stops_only_those_who_hold_nothing() -> None:
    """A worker with a shard in hand may be the one that makes progress and closes the breaker."""
    workers = (make.worker(0), make.worker(1))

    assert _stops(_decide(make.observed(make.held(0), workers=workers), memory=OPEN)) == [
        ("uid-1", Intent.CIRCUIT_OPEN)
    ]


def test_half_open_starts_one_probe() -> None:
    """When the wait is over one worker tries, and no second beside it; the planner asks to be called then."""
    run = make.run({"workers": {"count": 5}})

    assert _decide(run=run, memory=OPEN, now=make.later(55)).requeue_after_s == 5
    assert _starts(_decide(run=run, memory=OPEN, now=make.later(60))) == ["run-0-0"]
    probe = make.observed(workers=(make.worker(0),))
    assert _decide(probe, run=run, memory=OPEN, now=make.later(61)).actions == ()


def test_progress_closes_the_breaker() -> None:
    """One new commit, by whomever, and all slots are filled again."""
    look = make.observed(make.held(done=1), workers=(make.worker(0),))

    decision = _decide(look, memory=OPEN, now=make.later(61))

    assert decision.memory.breaker == RunBreaker()
    assert _starts(decision) == ["run-1-0"]
    assert decision.status.phase is Phase.RUNNING


def test_what_was_done_before_is_no_progress() -> None:
    """A controller that starts anew does not take old commits for new ones."""
    memory = replace(OPEN, progress_mark=None)

    assert _decide(make.observed(make.pending(make.held(done=50))), memory=memory).status.phase is Phase.CIRCUIT_OPEN


def test_too_many_openings_fail_the_run() -> None:
    """A run that never gets anywhere ends instead of probing for ever."""
    memory = replace(OPEN, breaker=replace(OPEN.breaker, num_openings=7))

    decision = _decide(make.observed(workers=(make.worker(0),)), memory=memory)

    assert decision.status.phase is Phase.FAILED
    assert "exit 64" in decision.status.message
    assert _stops(decision) == [("uid-0", Intent.RUN_ENDED)]


def test_a_changed_spec_gets_a_fresh_chance() -> None:
    """Applying a mended spec closes the breaker at once; the wait is not sat out."""
    memory = _decide(memory=OPEN).memory

    decision = _decide(run=make.run(generation=2), memory=memory)

    assert decision.status.phase is not Phase.CIRCUIT_OPEN
    assert len(_starts(decision)) == 2


# The end


def _all(*manifests: ShardManifest) -> Observed:
    rest = [make.complete(shard) for shard in range(4) if shard not in {item.shard for item in manifests}]
    return make.observed(*manifests, *rest)


def test_when_all_shards_are_complete_the_index_is_written() -> None:
    """Complete manifests, and nothing else, lead to the end."""
    decision = _decide(_all())

    assert decision.actions == (Finalize(),)
    assert decision.status.phase is Phase.FINALIZING
    assert decision.status.progress.percent == "100.0"


def test_a_finalized_run_has_succeeded_and_rests() -> None:
    """With the index there and nobody left, nothing is due any more."""
    decision = _decide(replace(_all(), is_finalized=True))

    assert decision.status.phase is Phase.SUCCEEDED
    assert decision.actions == ()
    assert decision.requeue_after_s is None
    assert _status_of(decision, ConditionType.COMPLETE) == "True"


def test_an_empty_input_is_a_success() -> None:
    """No shard, no record: the index says so."""
    assert _decide(num_shards=0).actions == (Finalize(),)


@pytest.mark.parametrize(("allowed", "phase"), [(0, Phase.FAILED), (1, Phase.FINALIZING)])
def test_failed_shards_are_judged_at_the_end(allowed: int, phase: Phase) -> None:
    """More failed shards than allowed fail the run, and the first one's reason is told."""
    run = make.run({"failurePolicy": {"maxFailedShards": allowed}})

    decision = _decide(_all(make.failed(2)), run=run)

    assert decision.status.phase is phase
    assert ("read the log" in decision.status.message) is (phase is Phase.FAILED)
    assert _status_of(decision, ConditionType.DEGRADED) == "True"


def test_a_failed_shard_does_not_stop_the_others() -> None:
    """The other shards are finished first."""
    decision = _decide(make.observed(make.failed(0)))

    assert decision.status.phase is not Phase.FAILED
    assert len(_starts(decision)) == 2


@pytest.mark.parametrize(("allowed", "phase"), [(1, Phase.FAILED), (2, Phase.RUNNING), (None, Phase.RUNNING)])
def test_too_many_quarantined_records_stop_the_run_at_once(allowed: int | None, phase: Phase) -> None:
    """A model that fails on everything must not spend the night on it."""
    manifest = replace(make.held(), quarantined=(make.in_quarantine(1), make.in_quarantine(2)))
    run = make.run({"failurePolicy": {"maxQuarantinedRecords": allowed}})

    decision = _decide(make.observed(manifest, workers=(make.worker(0), make.worker(1))), run=run)

    assert decision.status.phase is phase
    assert decision.status.quarantined == 2
    assert bool(_stops(decision)) is (phase is Phase.FAILED)


def test_the_deadline_fails_the_run() -> None:
    """The deadline counts from the first look, and the planner asks to be called then."""
    run = make.run({"activeDeadlineSeconds": 100})
    look = make.observed(workers=(make.worker(0), make.worker(1)))
    memory = _decide(look, run=run).memory

    assert _decide(look, run=run, memory=memory, now=make.later(95)).requeue_after_s == 5
    assert _decide(look, run=run, memory=memory, now=make.later(100)).status.phase is Phase.FAILED


def test_time_in_suspension_does_not_count() -> None:
    """The deadline begins anew when a suspended run goes on."""
    suspended = make.run({"activeDeadlineSeconds": 100, "suspend": True})
    memory = _decide(run=suspended, memory=_decide().memory, now=make.later(50)).memory

    decision = _decide(run=make.run({"activeDeadlineSeconds": 100}), memory=memory, now=make.later(120))

    assert decision.status.phase is not Phase.FAILED


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED, Phase.SUSPENDED])
def test_the_dead_are_cleared_away_in_the_end_too(phase: Phase) -> None:
    """Ended workers are released and forgotten whatever the run has come to."""
    run = make.run({"suspend": phase is Phase.SUSPENDED})
    memory = RunMemory(
        judged=("uid-0",), breaker=RunBreaker(num_openings=9 if phase is Phase.FAILED else 0, retry_at=None)
    )
    look = make.observed(workers=(make.worker(0, evidence=EVICTED),), is_finalized=phase is Phase.SUCCEEDED)

    decision = _decide(look, run=run, memory=memory)

    assert decision.status.phase is phase
    assert decision.actions == (ForgetWorker(name="run-0-0", uid="uid-0"),)


# Status


def test_status_counts_the_manifests() -> None:
    """Progress, shards, restarts, quarantine and workers are read off what is observed."""
    manifests = (
        make.complete(0),
        make.with_checkpoint(make.taken(make.pending(make.held(1, done=20)), uid="uid-9"), 20, 40),
        make.failed(2),
    )
    workers = (make.worker(1, uid="uid-9"), make.worker(0, uid="uid-8", state=WorkerState.STARTING))

    status = _decide(make.observed(*manifests, workers=workers), now=make.later(60)).status

    assert (status.progress.records, status.progress.bytes, status.progress.total_bytes) == (140, 140, 400)
    assert status.progress.percent == "35.0"
    assert (status.shards.total, status.shards.complete, status.shards.running, status.shards.failed) == (4, 1, 1, 1)
    assert (status.workers.active, status.workers.ready, status.workers.desired) == (2, 1, 2)
    assert (status.restarts.total, status.restarts.counted) == (2, 0)
    assert status.phase is Phase.RUNNING


def test_rate_and_time_left_come_from_what_was_seen_to_happen() -> None:
    """Sixty records in sixty seconds are one a second; the rest takes as long as its bytes ask for."""
    workers = (make.worker(0), make.worker(1))
    memory = _decide(make.observed(make.held(done=20), workers=workers)).memory
    manifest = make.with_checkpoint(make.held(done=20), 20, 80)

    status = _decide(make.observed(manifest, workers=workers), memory=memory, now=make.later(60)).status

    assert status.progress.records_per_second == "1"
    assert status.progress.eta_s == 320


@pytest.mark.parametrize("end", ["finalizing", "finalized", "failed"])
def test_a_run_that_is_over_keeps_its_rate(end: str) -> None:
    """All its records over all its work, though its pods take minutes to end and nothing is committed in the meantime."""
    first = make.with_checkpoint(make.held(), 0, 100)
    last = make.failed(1) if end == "failed" else make.with_checkpoint(make.held(1), 0, 100, at=make.later(40))
    last = last if end == "failed" else committed(last, commit_id="complete", records=100)
    manifests = (committed(first, commit_id="complete", records=100), last)
    look = make.observed(*manifests, workers=(make.worker(0),), is_finalized=end == "finalized")
    memory = _decide(make.observed(make.held()), num_shards=2).memory
    rates, left = set(), set()

    for minutes in (1, 2, 9):
        decision = _decide(look, memory=memory, num_shards=2, now=make.later(60 * minutes))
        memory = decision.memory
        rates.add(decision.status.progress.records_per_second)
        left.add(decision.status.progress.eta_s)

    # Checkpoints of ten seconds each; they end at the start and forty seconds later.
    assert rates == {"10" if end == "failed" else "4"}
    assert left == {None if end == "failed" else 0}


def test_a_condition_that_does_not_hold_says_nothing() -> None:
    """While workers wait for nodes, neither the breaker nor the failure has anything to say about it."""
    waiting = replace(make.worker(state=WorkerState.STARTING), waits_for="a node")

    decision = _decide(make.observed(workers=(waiting,)))

    messages = {item.type: item.message for item in decision.status.conditions if item.status == "False"}
    assert "a node" in messages[ConditionType.PROGRESSING]
    assert (messages[ConditionType.CIRCUIT_OPEN], messages[ConditionType.FAILED]) == ("", "")


def test_conditions_keep_the_time_of_their_last_change() -> None:
    """A condition whose status stays keeps its transition time; one that changes gets a new one."""
    first = _decide()
    second = _decide(memory=first.memory, run=make.run({"suspend": True}), now=make.later(60))

    times = {item.type: item.last_transition_time for item in second.status.conditions}
    assert times[ConditionType.ACCEPTED] == make.NOW
    assert times[ConditionType.SUSPENDED] == make.later(60)


def test_memory_stays_small() -> None:
    """A run with thousands of deaths remembers a bounded number of them."""
    memory = RunMemory()
    for attempt in range(400):
        worker = make.worker(0, uid=f"u{attempt}", attempt=attempt, evidence=CRASHED)
        memory = _decide(make.observed(workers=(worker,)), memory=memory, now=make.later(30 * attempt)).memory

    assert len(memory.judged) <= 257
    assert len(memory.deaths) <= 32
    assert len(memory.samples) <= 9
    assert len(memory.last_failures) == 10
    assert len(memory.breaker.failures) <= 5


def test_a_look_that_shows_nothing_new_changes_nothing() -> None:
    """Neither memory nor status: each change is a write to the API server, and looks come every few seconds."""
    look = make.observed(workers=tuple(make.worker(slot, state=WorkerState.STARTING) for slot in range(4)))
    first = _decide(look)
    second = _decide(look, memory=first.memory, now=make.later(5))

    assert (second.memory, second.status) == (first.memory, first.status)


def test_nothing_due_means_a_slow_look() -> None:
    """With a full crew at work the planner is content to be called every ten seconds."""
    look = make.observed(make.held(0), make.held(1, uid="uid-1"), workers=(make.worker(0), make.worker(1)))

    assert _decide(look).requeue_after_s == RESYNC_S


# Replays


def _applied(observed: Observed, actions: tuple[Action, ...], *, upto: int) -> Observed:
    """The world after the first `upto` actions, each applied twice: a repeated action must be harmless."""
    manifests, workers = dict(observed.manifests), list(observed.workers)
    for action in (item for item in actions[:upto] for _ in range(2)):
        match action:
            case ReleaseShard():
                new = action.applied(manifests[action.shard], commit_id=f"r{action.shard}")
                manifests[action.shard] = new or manifests[action.shard]
            case ForgetWorker():
                workers = [item for item in workers if item.uid != action.uid]
            case StartWorker() if all(item.name != action.name for item in workers):
                workers.append(make.worker(action.slot, uid=f"new-{action.name}", attempt=action.attempt))
            case StopWorker():
                workers = [
                    replace(item, state=WorkerState.DRAINING) if item.uid == action.uid else item for item in workers
                ]
    return replace(observed, manifests=manifests, workers=tuple(workers))


@pytest.mark.parametrize("is_saved", [True, False])
@pytest.mark.parametrize("upto", range(6))
def test_a_crash_between_any_two_actions_is_harmless(upto: int, is_saved: bool) -> None:  # noqa: FBT001
    """Whether or not memory was saved, the next controller reaches the state that an undisturbed one reaches."""
    run = make.run({"workers": {"count": 3}, "failurePolicy": {"backoff": {"replaceSeconds": 0, "retrySeconds": 0}}})
    before = RunMemory(progress_mark=0, judged=("uid-2",), slots=(Slot(slot=2, attempt=1),))
    world = make.observed(
        make.held(0, uid="uid-0"),
        make.held(1, uid="gone"),
        workers=(
            make.worker(0, evidence=CRASHED),
            make.worker(1, uid="uid-1"),
            make.worker(2, evidence=EVICTED),
            make.worker(5, uid="uid-5"),
        ),
    )

    def settled(world: Observed, memory: RunMemory) -> Observed:
        for second in range(6):
            decision = _decide(world, run=run, memory=memory, now=make.later(second))
            memory, world = decision.memory, _applied(world, decision.actions, upto=len(decision.actions))
        return world

    decision = _decide(world, run=run, memory=before)
    crashed = settled(_applied(world, decision.actions, upto=upto), decision.memory if is_saved else before)
    undisturbed = settled(world, before)

    assert len(decision.actions) >= 5
    assert {item.shard: (item.status, len(item.attempts)) for item in crashed.manifests.values()} == {
        0: (ShardStatus.PENDING, 1),
        1: (ShardStatus.PENDING, 1),
    }
    assert [item.status for item in crashed.manifests.values()] == [
        item.status for item in undisturbed.manifests.values()
    ]
    live = sorted((item.slot, item.state) for item in crashed.workers)
    assert live == sorted((item.slot, item.state) for item in undisturbed.workers)
    assert [slot for slot, _ in live] == [0, 1, 2, 5]


# Spot

SPOT = {"workers": {"count": 2, "capacity": {"prefer": "spot"}}}


@pytest.mark.parametrize(
    ("checkpoint", "first", "later_on"),
    [({}, 27, 10), ({"everySeconds": 33}, None, None), ({"profile": "default"}, None, None)],
)
def test_the_interval_follows_evictions(
    checkpoint: dict[str, Any], first: float | None, later_on: float | None
) -> None:
    """A worker that starts after a storm of evictions writes more often; one whose spec names an interval keeps it."""
    run = make.run({**SPOT, "checkpoint": checkpoint})
    calm = _decide(run=run)
    storm = [make.worker(0, uid=f"uid-{number}", attempt=number, evidence=EVICTED) for number in range(9)]
    evicted = _decide(make.observed(workers=tuple(storm)), run=run, memory=calm.memory)
    after = _decide(run=run, memory=evicted.memory, now=make.later(60))

    starts = [[item for item in found.actions if isinstance(item, StartWorker)] for found in (calm, after)]
    assert [item.checkpoint_every_s for item in starts[0]] == [first] * 2
    assert [item.checkpoint_every_s for item in starts[1]] == [later_on] * 2
    assert after.status.checkpoint.every_s == f"{later_on or run.spec.checkpoint.every_seconds:g}"
    assert after.status.checkpoint.evictions_per_hour == "5"


def test_workers_on_demand_say_nothing_of_spot() -> None:
    """Neither their time nor their end counts into the rate of evictions."""
    worker = replace(make.worker(0), is_on_demand=True)
    first = _decide(make.observed(workers=(worker,)))
    second = _decide(make.observed(workers=(worker,)), memory=first.memory, now=make.later(3600))
    ended = replace(make.worker(0, evidence=EVICTED), is_on_demand=True)
    third = _decide(make.observed(workers=(ended,)), memory=second.memory, now=make.later(3600))

    assert third.memory.eviction_rate.per_hour == 0.5


# Memory, waiting, and a cluster that is unwell

LIMITED = {"template": {"spec": {"containers": [{"name": "worker", "resources": {"limits": {"memory": "4Gi"}}}]}}}


def test_workers_that_start_get_the_memory_that_a_waiting_shard_needs() -> None:
    """Whoever starts while it waits; once it is held, others get the spec's again. Without a limit nothing is set."""
    needy = replace(make.pending(), hints=Hints(memory_bytes=8 * 2**30))
    run = make.run({"workers": {"count": 1, **LIMITED}, "failurePolicy": {"maxMemory": "8Gi"}})
    waiting, held = make.observed(needy), make.observed(make.taken(needy, uid="other"), is_complete=False)

    sizes = [
        [item.memory_bytes for item in _decide(found, run=of).actions if isinstance(item, StartWorker)]
        for found, of in ((waiting, run), (held, run), (waiting, make.run({"workers": {"count": 1}})))
    ]
    assert sizes == [[8 * 2**30], [4 * 2**30], [None]]


@pytest.mark.parametrize(("allowed", "expected"), [("16Gi", 16), ("6Gi", 6), ("1Gi", 4), (None, 4)])
def test_what_a_shard_remembers_is_given_within_what_is_allowed_now(allowed: str | None, expected: int) -> None:
    """`maxMemory` may have been lowered, or taken away, since the shard asked for so much."""
    needy = replace(make.pending(), hints=Hints(memory_bytes=16 * 2**30))
    policy = {} if allowed is None else {"maxMemory": allowed}
    run = make.run({"workers": {"count": 1, **LIMITED}, "failurePolicy": policy})

    (start,) = (item for item in _decide(make.observed(needy), run=run).actions if isinstance(item, StartWorker))

    assert start.memory_bytes == expected * 2**30


def test_what_workers_wait_for_is_shown() -> None:
    """The commonest reason, and that there are others; nothing is said while all run."""
    waiting = [
        replace(make.worker(slot, state=WorkerState.STARTING), waits_for=reason)
        for slot, reason in enumerate(("a node: none", "a node: none", "the scheduler"))
    ]
    decision = _decide(make.observed(workers=tuple(waiting)), run=make.run({"workers": {"count": 3}}))
    progressing = next(item for item in decision.status.conditions if item.type is ConditionType.PROGRESSING)

    assert decision.status.message == "2 worker(s) wait for a node: none; 1 more for something else"
    assert progressing.message == decision.status.message
    assert _decide(make.observed(workers=(make.worker(),))).status.message == ""


def test_many_nodes_gone_at_once() -> None:
    """No breaker opens, nothing counts, and replacements come fifty at a time, spread over some seconds."""
    run = make.run({"workers": {"count": 400}})
    lost = Evidence(node_state=NodeState.GONE)
    dead = tuple(make.worker(slot, node=f"node-{slot}", evidence=lost) for slot in range(400))
    first = _decide(make.observed(workers=dead), run=run, num_shards=500)
    gone = make.observed()
    later = [_decide(gone, run=run, memory=first.memory, now=make.later(at), num_shards=500) for at in (0.1, 2, 6)]

    assert first.status.phase in {Phase.PENDING, Phase.RUNNING}
    assert (first.status.restarts.total, first.status.restarts.counted) == (400, 0)
    assert 0 < len(_starts(later[0])) < 25
    assert len(_starts(later[1])) == len(_starts(later[2])) == MAX_STARTS
    assert later[2].requeue_after_s == FOLLOW_UP_S


# Evidence


@pytest.mark.parametrize(
    ("evidence", "is_kept"),
    [
        (CRASHED, True),
        (Evidence(signal=9), True),
        (EVICTED, False),
        (Evidence(exit_code=1, has_started=False), False),
        (Evidence(intent=Intent.SUSPENDED, has_deletion_timestamp=True), False),
    ],
)
def test_the_log_of_a_failed_worker_is_kept_before_it_goes(evidence: Evidence, *, is_kept: bool) -> None:
    """Together with forgetting it, so that no crash in between loses it; an eviction has nothing to tell."""
    dead = make.observed(workers=(make.worker(evidence=evidence),))
    first = _decide(dead)
    second = _decide(dead, memory=first.memory)

    assert not [item for item in first.actions if isinstance(item, KeepLog | ForgetWorker)]
    kept = [KeepLog(name="run-0-0", uid="uid-0")] if is_kept else []
    assert [item for item in second.actions if isinstance(item, KeepLog | ForgetWorker)] == [
        *kept,
        ForgetWorker(name="run-0-0", uid="uid-0"),
    ]


def test_a_few_logs_tell_of_many_failures() -> None:
    """Hundreds of workers that fail together must not make a look last for minutes."""
    dead = make.observed(workers=tuple(make.worker(slot, evidence=CRASHED) for slot in range(100)))
    decision = _decide(dead, memory=_decide(dead).memory)

    assert sum(isinstance(item, KeepLog) for item in decision.actions) == MAX_LOGS
    assert sum(isinstance(item, ForgetWorker) for item in decision.actions) == 100
