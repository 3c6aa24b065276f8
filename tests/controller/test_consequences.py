"""controller.consequences: waits, budgets, strikes and quarantine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contract.flight import Flight
from contract.manifest import ShardManifest, ShardStatus, invariants
from contract.names import ExitCode, FailureClass, QuarantineClass
from contract.ranges import count
from controller.actions import ReleaseShard
from controller.api import Backoff, FailurePolicy
from controller.consequences import MAX_CONDEMNED_IN_A_ROW, delay_s, release
from controller.failure_policy import Verdict, classify
from controller.observed import Evidence
from tests import make

POLICY = FailurePolicy()
SEGFAULT, KILL, MEMORY, CRASH, SPOT = (
    {"exit_code": 139},
    {"signal": 9},
    {"exit_code": 137, "container_reason": "OOMKilled"},
    {"exit_code": 1},
    {"exit_code": 143},
)


def _verdict(manifest: ShardManifest, seen: dict[str, object], flight: Flight | None) -> Verdict:
    return classify(Evidence(**seen, flight=flight), manifest)  # type: ignore[arg-type]


def _release(
    manifest: ShardManifest, seen: dict[str, object], flight: Flight | None = None, policy: FailurePolicy = POLICY
) -> ReleaseShard:
    return release(
        manifest,
        _verdict(manifest, seen, flight),
        flight=flight,
        policy=policy,
        max_tokens_per_batch=1000,
        now=make.later(50),
        jitter=0.5,
    )


def _applied(manifest: ShardManifest, action: ReleaseShard) -> ShardManifest:
    new = action.applied(manifest, commit_id=f"release-{manifest.version}")
    assert new is not None
    assert invariants(new, manifest) is None
    return new


def _die(manifest: ShardManifest, seen: dict[str, object], first: int | None, following: int | None) -> ShardManifest:
    """The manifest once its owner has died, and the next worker has claimed what is left."""
    flight = make.flight(first, following, epoch=manifest.epoch)
    released = _applied(manifest, _release(manifest, seen, flight))
    if released.is_final:
        return released
    return make.taken(released, uid=f"uid-{released.epoch + 1}")


@pytest.mark.parametrize(
    ("failure_class", "num_failures", "expected"),
    [
        (FailureClass.DONE, 1, 0),
        (FailureClass.INTENDED, 1, 0),
        (FailureClass.CONFIGURATION, 1, 0),
        (FailureClass.CRASH_LOOP, 1, 0),
        (FailureClass.SPOT_EVICTION, 99, 2.5),
        (FailureClass.NODE_LOST, 99, 2.5),
        (FailureClass.GPU_HARDWARE, 99, 2.5),
        (FailureClass.NODE_REJECTED, 99, 30.5),
        (FailureClass.POISON_INPUT, 99, 1),
        (FailureClass.TRANSIENT, 1, 1),
        (FailureClass.TRANSIENT, 3, 4),
        (FailureClass.OUT_OF_MEMORY, 5, 16),
        (FailureClass.DISK_PRESSURE, 6, 30),
        (FailureClass.TRANSIENT, 10_000, 30),
        (FailureClass.IMAGE_PULL, 1, 10),
        (FailureClass.IMAGE_PULL, 9, 150),
    ],
)
def test_waits(failure_class: FailureClass, num_failures: int, expected: float) -> None:
    """At a jitter of one half, each class waits half of its full wait; those that grow have a cap."""
    assert delay_s(failure_class, num_failures=num_failures, backoff=Backoff(), jitter=0.5) == expected


def test_waits_can_be_switched_off() -> None:
    """A policy of zeros, as for tests, waits nowhere."""
    none = Backoff(replace_s=0, rejected_s=0, poison_s=0, retry_s=0, retry_cap_s=0, image_pull_s=0, image_pull_cap_s=0)

    assert {delay_s(kind, num_failures=3, backoff=none, jitter=0.9) for kind in FailureClass} == {0}


def test_a_spot_eviction_costs_nothing() -> None:
    """The shard is free at once: no strike, no budget, no hint, whatever was in flight."""
    manifest = make.held(done=10)

    new = _applied(manifest, _release(manifest, SPOT, make.flight(10, 20)))

    assert (new.status, new.not_before, new.strikes) == (ShardStatus.PENDING, None, ())
    assert (new.restarts.counted, new.restarts.streak, new.restarts.total) == (0, 0, 1)
    assert new.attempts[-1].failure_class is FailureClass.SPOT_EVICTION
    assert (new.attempts[-1].counted, new.attempts[-1].held_seconds) == (False, 50)


def test_three_failures_are_retried_and_the_fourth_fails_the_shard() -> None:
    """The budget is of failures in a row; the last word says what happened and what to do."""
    manifest, waits = make.held(), []
    for _ in range(3):
        action = _release(manifest, CRASH)
        assert action.not_before is not None
        waits.append((action.not_before - make.later(50)).total_seconds())
        manifest = make.taken(_applied(manifest, action), uid=f"uid-{manifest.epoch}")

    new = _applied(manifest, _release(manifest, CRASH))

    assert waits == [1, 2, 4]
    assert new.status is ShardStatus.FAILED
    assert new.failure is not None
    assert "4 failures in a row" in new.failure.detail
    assert "exit 1" in new.failure.detail
    assert "retry" in new.failure.detail


def test_progress_renews_the_budget() -> None:
    """A long shard with a rare failure between commits never fails: only failures in a row are bounded."""
    manifest = make.held()
    for number in range(12):
        manifest = make.with_checkpoint(_die(manifest, CRASH, None, None), number, number + 1)

    assert manifest.status is ShardStatus.RUNNING
    assert (manifest.restarts.counted, manifest.restarts.streak) == (12, 0)


def test_evictions_between_failures_do_not_renew_the_budget() -> None:
    """A free death neither spends the budget nor gives any back."""
    manifest = make.held()
    for _ in range(3):
        manifest = _die(_die(manifest, CRASH, None, None), SPOT, None, None)

    assert manifest.restarts.streak == 3
    assert _die(manifest, CRASH, None, None).status is ShardStatus.FAILED


def test_a_bad_input_fails_its_shard_at_once() -> None:
    """Exit 64 with a shard in hand is final for this shard; trying again would read the same bytes."""
    manifest = make.held()

    new = _applied(manifest, _release(manifest, {"exit_code": 64}, make.flight(detail="a.fasta:100 no header")))

    assert new.status is ShardStatus.FAILED
    assert new.failure is not None
    assert "no header" in new.failure.detail


def test_a_refused_store_is_not_the_shards_fault() -> None:
    """Exit 69 opens the run's breaker; the shard keeps its budget and can be claimed at once."""
    manifest = make.held()

    new = _applied(manifest, _release(manifest, {"exit_code": 69}))

    assert (new.status, new.not_before, new.restarts.streak) == (ShardStatus.PENDING, None, 0)


@pytest.mark.parametrize(
    ("seen", "num_deaths", "kind"),
    [
        (SEGFAULT, 4, QuarantineClass.POISON_INPUT),
        (MEMORY, 4, QuarantineClass.OUT_OF_MEMORY),
        (CRASH, 4, QuarantineClass.POISON_INPUT),
        (KILL, 6, QuarantineClass.POISON_INPUT),
    ],
    ids=["segfault", "memory", "crash", "kill from outside"],
)
def test_a_bad_record_is_quarantined_after_two_batches_and_two_alone(
    seen: dict[str, object], num_deaths: int, kind: QuarantineClass
) -> None:
    """Just the record in flight alone goes, with offset and id; the shard never fails for it; a kill takes two more."""
    manifest = _die(_die(make.held(), seen, 40, 60), seen, 40, 60)
    for _ in range(num_deaths - 3):
        manifest = _die(manifest, seen, 47, 48)
    before = manifest

    manifest = _die(manifest, seen, 47, 48)

    assert before.quarantined == ()
    (found,) = manifest.quarantined
    assert (found.ordinal, found.offset, found.id, found.quarantine_class) == (47, 470, "record-47", kind)
    assert f"{num_deaths} workers" in found.detail
    assert manifest.status is ShardStatus.RUNNING
    assert manifest.restarts.streak == 0
    assert [(item.first, item.next, item.count) for item in manifest.strikes] == [(40, 47, 2), (48, 60, 2)]


def _with_quarantined(num_harmful: int, *, num_unread: int = 0) -> ShardManifest:
    """A shard whose first records are in quarantine, some that no model was given among them."""
    classes = [QuarantineClass.INVALID_RECORD] * num_unread + [QuarantineClass.POISON_INPUT] * num_harmful
    quarantined = tuple(
        replace(make.in_quarantine(ordinal), quarantine_class=kind) for ordinal, kind in enumerate(classes)
    )
    return replace(make.held(), quarantined=quarantined)


def _end_alone(manifest: ShardManifest, ordinal: int) -> ShardManifest:
    """The manifest once this record, alone, has ended its workers as often as is needed."""
    while manifest.status is ShardStatus.RUNNING and ordinal not in {item.ordinal for item in manifest.quarantined}:
        manifest = _die(manifest, SEGFAULT, ordinal, ordinal + 1)
    return manifest


@pytest.mark.parametrize("num_unread", [0, 3])
def test_a_shard_of_which_every_record_ends_its_worker_fails(num_unread: int) -> None:
    """It is not the records' fault then, and each would cost some workers. Others than the last stay in quarantine."""
    manifest = _with_quarantined(0, num_unread=num_unread)
    for ordinal in range(num_unread, num_unread + MAX_CONDEMNED_IN_A_ROW + 1):
        assert manifest.status is ShardStatus.RUNNING
        manifest = _end_alone(manifest, ordinal)

    assert manifest.status is ShardStatus.FAILED
    assert len(manifest.quarantined) == MAX_CONDEMNED_IN_A_ROW + num_unread
    assert manifest.failure is not None
    assert "in a row" in manifest.failure.detail


def test_harmful_records_between_sound_ones_are_all_quarantined() -> None:
    """However many they are: one that was done between them speaks for the others."""
    manifest = make.with_checkpoint(_with_quarantined(MAX_CONDEMNED_IN_A_ROW), 7, 8)

    manifest = _end_alone(manifest, MAX_CONDEMNED_IN_A_ROW + 1)

    assert manifest.status is ShardStatus.RUNNING
    assert len(manifest.quarantined) == MAX_CONDEMNED_IN_A_ROW + 1


def test_kills_spread_over_records_quarantine_nobody() -> None:
    """Thirty kills from outside, each with another record alone in flight, blame none of them."""
    manifest = make.held()
    for number in range(30):
        manifest = _die(manifest, KILL, number, number + 1)

    assert manifest.quarantined == ()
    assert manifest.restarts.counted == 0


def test_a_batch_that_cannot_be_isolated_spends_the_shards_budget() -> None:
    """Deaths with several records in flight, for ever, end in a failed shard and not in endless restarts."""
    manifest, num_deaths = make.held(), 0
    while not manifest.is_final:
        manifest = _die(manifest, SEGFAULT, 40, 60)
        num_deaths += 1
        assert num_deaths < 20

    assert manifest.status is ShardStatus.FAILED
    assert manifest.quarantined == ()
    assert num_deaths == 2 * POLICY.max_record_strikes + POLICY.max_shard_retries + 1


@pytest.mark.parametrize(
    ("seen", "exit_code", "is_struck"),
    [
        (SEGFAULT, None, True),
        (CRASH, None, True),
        (KILL, None, True),
        ({"exit_code": 76}, ExitCode.NO_PROGRESS, True),
        ({"exit_code": 75}, ExitCode.TRANSIENT, False),
        (KILL, ExitCode.DRAINED, False),
        ({"exit_code": 77}, ExitCode.GPU_HARDWARE, False),
        ({"is_vanished": True}, None, False),
        (SPOT, None, False),
    ],
)
def test_who_gets_a_strike(seen: dict[str, object], exit_code: int | None, is_struck: bool) -> None:  # noqa: FBT001
    """Records are suspected where they may be at fault: not of a drained worker, a lost node or a broken GPU."""
    manifest = make.held()

    new = _applied(manifest, _release(manifest, seen, make.flight(5, 9, exit_code=exit_code)))

    assert bool(new.strikes) is is_struck


def test_a_flight_without_offset_quarantines_nothing() -> None:
    """A record whose offset is unknown cannot be named in the quarantine list, so it is not put there."""
    manifest = make.held()
    for _ in range(3):
        manifest = _die(manifest, SEGFAULT, 5, 6)
    flight = replace(make.flight(5, 6, epoch=manifest.epoch), first_offset=None)

    assert _release(manifest, SEGFAULT, flight).quarantined == ()


def test_a_record_is_not_blamed_when_its_batch_was_larger() -> None:
    """A record that is the last unsettled one of a batch was not alone in flight."""
    manifest = make.held(done=5)
    for _ in range(6):
        manifest = _die(manifest, SEGFAULT, 0, 6)

    assert manifest.quarantined == ()


@pytest.mark.parametrize(("budget", "expected"), [(None, 500), (600, 300), (300, 256), (256, 256), (100, 100)], ids=str)
def test_out_of_memory_halves_the_token_budget_down_to_a_floor(budget: int | None, expected: int) -> None:
    """The next worker gets half the tokens per batch, never more than before and not below the floor."""
    manifest = make.held()
    manifest = replace(manifest, hints=replace(manifest.hints, token_budget=budget))

    assert _applied(manifest, _release(manifest, MEMORY)).hints.token_budget == expected


GIB = 2**30


@pytest.mark.parametrize(
    ("limit", "allowed", "expected"),
    [
        (4 * GIB, 12 * GIB, [None, 8 * GIB, 12 * GIB]),
        (4 * GIB, None, [None, None, None]),
        (None, 12 * GIB, [None, None, None]),
        (4 * GIB, 2 * GIB, [None, None, None]),
    ],
)
def test_out_of_memory_again_raises_the_limit_up_to_the_allowed_one(
    limit: int | None, allowed: int | None, expected: list[int | None]
) -> None:
    """Smaller batches are tried first; nothing is raised where there is no limit, or no more is allowed."""
    manifest, found = make.held(), []
    for _ in range(3):
        action = release(
            manifest,
            _verdict(manifest, MEMORY, None),
            flight=None,
            policy=FailurePolicy(max_memory_bytes=allowed),
            max_tokens_per_batch=1000,
            memory_limit=limit,
            now=make.later(50),
            jitter=0.5,
        )
        released = _applied(manifest, action)
        found.append(released.hints.memory_bytes)
        manifest = make.taken(released, uid=f"uid-{released.epoch + 1}")

    assert found == expected


@pytest.mark.parametrize(
    ("detail", "is_raised"),
    [
        ("CUDA out of memory", False),
        ("host memory exhausted", True),
        (
            "OutOfMemory: record 5 alone at offset 9: the model process was killed for the container's memory limit",
            True,
        ),
    ],
)
def test_a_device_that_is_full_raises_no_limit_of_the_host(detail: str, *, is_raised: bool) -> None:
    """More memory for the container would not be used."""
    manifest = replace(make.held(), restarts=replace(make.held().restarts, streak=1))
    flight = make.flight(exit_code=78, detail=detail)
    action = release(
        manifest,
        _verdict(manifest, {"exit_code": 78}, flight),
        flight=flight,
        policy=FailurePolicy(max_memory_bytes=12 * GIB),
        max_tokens_per_batch=1000,
        memory_limit=4 * GIB,
        now=make.later(50),
        jitter=0.5,
    )

    assert action.hints is not None
    assert (action.hints.memory_bytes == 8 * GIB) == is_raised


def test_other_deaths_leave_the_hints() -> None:
    """A budget that was found to fit is kept."""
    manifest = make.held()
    manifest = replace(manifest, hints=replace(manifest.hints, token_budget=123))

    assert _applied(manifest, _release(manifest, CRASH)).hints.token_budget == 123


def test_a_release_applies_once_and_only_to_what_it_was_decided_on() -> None:
    """Replayed, late, or over a manifest that moved on, it changes nothing."""
    manifest = make.held()
    action = _release(manifest, CRASH)
    new = _applied(manifest, action)

    assert action.applied(new, commit_id="again") is None
    assert action.applied(make.taken(new, uid="uid-0"), commit_id="again") is None
    assert action.applied(make.with_checkpoint(manifest, 0, 5), commit_id="late") is None


def test_the_last_record_in_quarantine_completes_the_shard() -> None:
    """When nothing but the condemned record was left, the shard is complete, not pending."""
    manifest = make.held(done=99)
    manifest = replace(manifest, records=100)
    for _ in range(4):
        manifest = _die(manifest, SEGFAULT, 99, 100)

    assert manifest.status is ShardStatus.COMPLETE
    assert count(manifest.settled) == 100
