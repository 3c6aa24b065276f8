"""Tests of `inferencerun status`, `shards`, `failures` and `quarantine`: what the manifests say, no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cli.output import Manifests, StoredManifest, UnreadableManifest
from cli.status import is_stale, summary
from contract import layout, run_record
from contract.layout import build_log_key
from contract.manifest import Attempt, Failure, Restarts, ShardManifest, ShardStatus
from contract.names import FailureClass, Phase
from contract.plan import Compression, InputFormat, InputObject, Plan, cut
from contract.store.protocol import ETag
from contract.transitions import first_claim
from tests.cli.outputs import NOW, OWNER, make_output, run, run_json

PLAN: Plan = cut(
    [InputObject(uri="file:///in.fasta", size=400, etag="e", compression=Compression.NONE)],
    generation=1,
    fmt=InputFormat.FASTA,
    shard_bytes=100,
)


def a_manifest(shard: int, status: ShardStatus) -> ShardManifest:
    """A manifest of the plan in this status."""
    claimed = first_claim(PLAN.shards[shard], generation=1, owner=OWNER, commit_id="c", now=NOW)
    return replace(claimed, status=status, owner=OWNER if status is ShardStatus.RUNNING else None)


def manifests_of(items: Sequence[ShardManifest], *, unreadable: Sequence[int] = ()) -> Manifests:
    """As read from a store."""
    return Manifests(
        stored={item.shard: StoredManifest(manifest=item, etag=ETag("e")) for item in items},
        unreadable=tuple(UnreadableManifest(shard=shard, key=str(shard), message="bad") for shard in unreadable),
    )


COMPLETE, RUNNING, FAILED, PENDING = ShardStatus.COMPLETE, ShardStatus.RUNNING, ShardStatus.FAILED, ShardStatus.PENDING


@pytest.mark.parametrize(
    ("statuses", "has_success", "phase"),
    [
        ((), False, Phase.PENDING),
        ((PENDING, COMPLETE, COMPLETE, COMPLETE), False, Phase.PENDING),
        ((RUNNING, PENDING), False, Phase.RUNNING),
        ((RUNNING, FAILED, FAILED, FAILED), False, Phase.RUNNING),
        ((COMPLETE,) * 4, False, Phase.FINALIZING),
        ((COMPLETE, COMPLETE, COMPLETE, FAILED), False, Phase.FAILED),
        ((COMPLETE, COMPLETE, COMPLETE, FAILED), True, Phase.SUCCEEDED),
        ((COMPLETE,) * 4, True, Phase.SUCCEEDED),
    ],
)
def test_the_phase_follows_from_the_shards(
    statuses: tuple[ShardStatus, ...], phase: Phase, *, has_success: bool
) -> None:
    """Success is read off _SUCCESS alone, everything else off the manifests."""
    items = [a_manifest(shard, status) for shard, status in enumerate(statuses)]

    found = summary(PLAN, manifests_of(items), has_success=has_success, now=NOW)

    assert found["phase"] == phase


def test_every_shard_is_in_one_list(tmp_path: Path) -> None:
    """Unclaimed, unreadable, pending, running and failed shards are incomplete; failed ones are orphaned."""
    items = [a_manifest(0, COMPLETE), a_manifest(1, FAILED)]

    found = summary(PLAN, manifests_of(items, unreadable=[2]), has_success=False, now=NOW)

    assert (found["incomplete"], found["orphaned"], found["unreadable"]) == ([1, 2, 3], [1], [2])
    assert found["shards"] == {"total": 4, "unclaimed": 1, "pending": 0, "running": 0, "complete": 1, "failed": 1}


def test_restarts_are_summed_by_class() -> None:
    """Over all shards: all restarts, and those that count."""
    first = replace(
        a_manifest(0, RUNNING), restarts=Restarts(total=3, counted=1, by_class=(("NodeLost", 2), ("Transient", 1)))
    )
    second = replace(a_manifest(1, PENDING), restarts=Restarts(total=2, counted=0, by_class=(("NodeLost", 2),)))

    found = summary(PLAN, manifests_of([first, second]), has_success=False, now=NOW)

    assert found["restarts"] == {"total": 5, "counted": 1, "byClass": {"NodeLost": 4, "Transient": 1}}


@pytest.mark.parametrize(("silent_s", "expected"), [(600, False), (601, True)])
def test_a_running_shard_without_a_commit_for_600_s_is_stale(silent_s: int, *, expected: bool) -> None:
    """The claim counts as a sign of life."""
    assert is_stale(a_manifest(0, RUNNING), NOW + timedelta(seconds=silent_s)) is expected


def test_only_a_running_shard_is_stale() -> None:
    """Nobody is expected to commit to a pending or final shard."""
    later = NOW + timedelta(days=1)

    assert not [status for status in (PENDING, COMPLETE, FAILED) if is_stale(a_manifest(0, status), later)]


def test_rate_and_eta_come_from_the_last_ten_minutes(tmp_path: Path) -> None:
    """Half of the bytes done, 20 records in 10 s: 2 records/s, and the other half needs as long again."""
    made = make_output(
        tmp_path, num_objects=1, bad=(), per_checkpoint=20, shard_bytes=100_000, stop_after={0: 1}, is_finished=False
    )
    current = made.manifest(0)
    item = replace(current.checkpoints[0], seconds=10.0, created_at=NOW)
    current = replace(current, checkpoints=(item,), bytes_done=made.plan.total_bytes // 2)

    found = summary(made.plan, manifests_of([current]), has_success=False, now=NOW)
    held_by_nobody = replace(current, status=PENDING, owner=None)
    paused = summary(made.plan, manifests_of([held_by_nobody]), has_success=False, now=NOW)
    old = summary(made.plan, manifests_of([current]), has_success=False, now=NOW + timedelta(hours=1))

    assert (found["recordsPerSecond"], found["etaSeconds"], found["percent"]) == ("2.0", 10, "50.0")
    assert paused["etaSeconds"] is None
    assert (old["recordsPerSecond"], old["etaSeconds"]) == ("0.0", None)


def test_a_finished_run_is_shown_whole(tmp_path: Path) -> None:
    """All bytes count, though quarantined records at the end commit none."""
    made = make_output(tmp_path)

    found = run_json("status", made.uri)

    assert (found["phase"], found["percent"], found["records"], found["quarantined"]) == ("Succeeded", "100.0", 78, 2)
    assert (found["incomplete"], found["workers"], found["run"], found["generation"]) == ([], [], "made", 1)


def test_a_running_run_names_its_workers(tmp_path: Path) -> None:
    """Who holds which shard, at which epoch, and where."""
    made = make_output(tmp_path, only_shards=(0, 1), stop_after={1: 1}, is_finished=False)

    found = run_json("status", made.uri)
    text = run("status", made.uri).stdout

    assert (found["phase"], found["stale"]) == ("Running", [1])
    assert found["workers"] == [{"pod": "made-0", "node": "node-a", "shard": 1, "epoch": 1}]
    assert "made-0" in text
    assert "shard 1 on node-a" in text


def test_a_run_without_a_plan_is_planning(tmp_path: Path) -> None:
    """Status works before there is anything to count; commands that need a plan say so."""
    made = make_output(tmp_path, is_finished=False)
    made.store.delete("g0001/plan.json")

    found = run_json("status", made.uri)
    refused = run("shards", made.uri)

    assert found["phase"] == "Planning"
    assert run("status", made.uri).exit_code == 0
    assert (refused.exit_code, "no plan yet" in refused.stderr) == (64, True)


def test_an_unreadable_manifest_exits_1(tmp_path: Path) -> None:
    """Status and shards still show the rest, and name the way out."""
    made = make_output(tmp_path)
    made.store.put_overwrite(layout.build_shard_key(1, 1), b"x")

    status, shards = run("status", made.uri), run_json("shards", made.uri, exit_code=1)

    assert status.exit_code == 1
    assert "inferencerun repair" in status.stdout
    assert shards["shards"][1]["status"] == "unreadable"
    assert shards["shards"][0]["status"] == "complete"


def test_shards_lists_the_whole_plan(tmp_path: Path) -> None:
    """Claimed or not, each shard is a line."""
    made = make_output(tmp_path, only_shards=(0, 1), stop_after={1: 1}, is_finished=False)

    found = run_json("shards", made.uri)["shards"]
    lines = run("shards", made.uri).stdout.splitlines()

    assert [item["status"] for item in found] == ["complete", "running"] + ["unclaimed"] * (len(made.plan.shards) - 2)
    assert (found[1]["owner"]["pod"], found[1]["done"], found[1]["records"], found[1]["stale"]) == (
        "made-0",
        4,
        None,
        True,
    )
    assert lines[0].startswith("SHARD  STATUS")
    assert len(lines) == 1 + len(made.plan.shards)
    assert "running, stale" in lines[2]


def test_failures_shows_the_newest_attempts_of_all_shards(tmp_path: Path) -> None:
    """With class, evidence, pod and node; newest first, as many as asked for; then the shards that failed for good."""
    made = make_output(tmp_path, is_finished=False)
    for shard in (0, 1):
        attempts = tuple(
            Attempt(
                pod=f"pod-{shard}-{number}",
                uid=f"u{number}",
                node="node-b",
                epoch=number,
                failure_class=FailureClass.OUT_OF_MEMORY,
                evidence="exit code 78",
                counted=True,
                ended_at=NOW + timedelta(minutes=10 * number + shard),
            )
            for number in range(3)
        )
        made.overwrite(replace(made.manifest(shard), attempts=attempts))
    made.overwrite(
        replace(
            made.manifest(1),
            status=FAILED,
            failure=Failure(failure_class=FailureClass.OUT_OF_MEMORY, detail="raise the memory limit"),
        )
    )

    log = build_log_key(1, "pod-1-2", "u2")
    made.store.put_create(log, b"Traceback")
    shardless = build_log_key(1, "pod-9-0", "u9")
    made.store.put_create(shardless, b"no weights")

    found = run_json("failures", made.uri, "--last", "2")
    text = run("failures", made.uri).stdout

    assert [item["log"] for item in found["attempts"]] == [log, None]
    assert log in text
    assert found["otherLogs"] == [shardless]
    assert text.rstrip().endswith(shardless)
    assert [item["pod"] for item in found["attempts"]] == ["pod-1-2", "pod-0-2"]
    assert found["attempts"][0]["class"] == "OutOfMemory"
    assert found["attempts"][0]["evidence"] == "exit code 78"
    assert found["failedShards"] == [{"shard": 1, "class": "OutOfMemory", "detail": "raise the memory limit"}]
    assert text.count("exit code 78") == 6
    assert "raise the memory limit" in text


def test_quarantine_lists_each_record_with_its_reason(tmp_path: Path) -> None:
    """In input order, with object and offset, so that the record can be looked at."""
    made = make_output(tmp_path)

    found = run_json("quarantine", made.uri)["quarantined"]
    text = run("quarantine", made.uri).stdout

    assert [item["id"] for item in found] == ["rec0_5", "rec0_23"]
    assert found[0]["object"] == made.plan.objects[0].uri
    assert found[0]["offset"] == next(r.offset for r in made.records[0] if r.id == "rec0_5")
    assert found[0]["class"] == "InvalidRecord"
    assert "illegal letter '1'" in text


def test_nothing_to_list_is_said(tmp_path: Path) -> None:
    """An empty list is a sentence, not silence."""
    made = make_output(tmp_path, bad=())

    assert "No record is quarantined." in run("quarantine", made.uri).stdout
    assert "No attempt has ended." in run("failures", made.uri).stdout


@pytest.mark.parametrize(
    ("generation", "message"), [("2", "generation 2 does not exist; the run has 1 to 1"), ("0", "x>=1")]
)
def test_a_generation_that_is_not_there_is_refused(tmp_path: Path, generation: str, message: str) -> None:
    """With what there is."""
    made = make_output(tmp_path)

    result = run("status", made.uri, "--generation", generation)

    assert result.exit_code in (2, 64)
    assert message in result.stderr


def test_an_older_generation_can_be_read(tmp_path: Path) -> None:
    """A restart keeps it."""
    made = make_output(tmp_path)
    made.store.put_overwrite("run.json", run_record.to_json(replace(made.record, generation=2)))

    old, new = run_json("status", made.uri, "--generation", "1"), run_json("status", made.uri)

    assert (old["phase"], new["phase"]) == ("Succeeded", "Planning")


def test_a_place_without_a_run_is_an_error(tmp_path: Path) -> None:
    """Exit code 64, the reason on standard error, nothing on standard output."""
    result = run("status", tmp_path, "--json")

    assert (result.exit_code, result.stdout) == (64, "")
    assert "no run here" in result.stderr
