"""Tests of `inferencerun cleanup`: what nobody can name any more goes, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cli.cleanup import is_garbage
from contract import layout, plan, run_record
from contract.layout import build_log_key
from contract.manifest import ShardManifest, ShardStatus
from contract.store.protocol import ETag, Listed
from contract.transitions import first_claim
from tests.cli.outputs import NOW, OWNER, Made, make_output, run, run_json
from tests.cli.test_status import PLAN

DAY = timedelta(hours=24)


def current(*, epoch: int = 3, status: ShardStatus = ShardStatus.RUNNING) -> ShardManifest:
    """Shard 0's manifest."""
    claimed = first_claim(PLAN.shards[0], generation=1, owner=OWNER, commit_id="c", now=NOW)
    return replace(claimed, epoch=epoch, status=status)


def listed(*, epoch: int, age: timedelta = DAY, shard: int = 0) -> Listed:
    """An object of the shard."""
    return Listed(key=layout.build_data_key(1, shard, epoch, 1), size=10, etag=ETag("e"), modified_at=NOW - age)


@pytest.mark.parametrize(
    ("item", "manifest", "expected"),
    [
        (listed(epoch=2), current(epoch=3), True),
        (listed(epoch=3), current(epoch=3), False),
        (listed(epoch=4), current(epoch=3), False),
        (listed(epoch=3), current(epoch=3, status=ShardStatus.PENDING), False),
        (listed(epoch=3), current(epoch=3, status=ShardStatus.COMPLETE), True),
        (listed(epoch=3), current(epoch=3, status=ShardStatus.FAILED), True),
        (listed(epoch=2, age=DAY - timedelta(seconds=1)), current(epoch=3), False),
        (listed(epoch=2, shard=1), current(epoch=3), False),
        (Listed(key="g0001/data/00000/notes.txt", size=1, etag=ETag("e"), modified_at=NOW - DAY), current(), False),
    ],
    ids=[
        "older epoch",
        "present epoch, running",
        "later epoch",
        "present epoch, pending",
        "present epoch, complete",
        "present epoch, failed",
        "within the grace time",
        "shard without a readable manifest",
        "not ours",
    ],
)
def test_only_what_can_never_be_named_is_garbage(item: Listed, manifest: ShardManifest, expected: bool) -> None:  # noqa: FBT001
    """Old, unnamed, and of an epoch that nobody can commit at."""
    assert is_garbage(item, {0: manifest}, frozenset(), now=NOW, grace=DAY) is expected


def test_what_a_manifest_or_a_snapshot_names_is_no_garbage(tmp_path: Path) -> None:
    """However old it is and whatever its epoch."""
    made = make_output(tmp_path)
    named = made.manifest(0)
    items = [Listed(key=item.key, size=1, etag=ETag("e"), modified_at=NOW - 9 * DAY) for item in named.checkpoints]
    unnamed = replace(named, checkpoints=(), epoch=9)
    kept = frozenset(item.key for item in items)

    assert not any(is_garbage(item, {0: replace(named, epoch=9)}, frozenset(), now=NOW, grace=DAY) for item in items)
    assert not any(is_garbage(item, {0: unnamed}, kept, now=NOW, grace=DAY) for item in items)
    assert all(is_garbage(item, {0: unnamed}, frozenset(), now=NOW, grace=DAY) for item in items)


def keys(made: Made) -> set[str]:
    """All objects of the output."""
    return {item.key for item in made.store.list()}


def litter(made: Made) -> set[str]:
    """What a killed worker and a killed probe leave."""
    garbage = {layout.build_data_key(1, 0, 1, 99), layout.build_data_key(1, 1, 1, 98), ".probe/n/race"}
    for key in garbage:
        made.store.put_create(key, b"garbage")
    return garbage


def test_litter_goes_and_the_run_stays_fine(tmp_path: Path) -> None:
    """A dry run says the same and removes nothing; the second call has nothing to do."""
    made = make_output(tmp_path)
    before = keys(made)
    litter(made)

    dry = run_json("cleanup", made.uri, "--older-than", "0s", "--dry-run")
    num_after_dry = len(keys(made))
    wet = run_json("cleanup", made.uri, "--older-than", "0s")
    again = run_json("cleanup", made.uri, "--older-than", "0s")

    assert num_after_dry == len(before) + 3
    assert (wet["unnamed"], wet["probes"]) == ({"objects": 2, "bytes": 14}, {"objects": 1, "bytes": 7})
    assert {**dry, "dryRun": False} == wet
    assert again["unnamed"]["objects"] == 0
    assert keys(made) == before
    assert run_json("verify", made.uri)["ok"]


def test_young_litter_stays(tmp_path: Path) -> None:
    """A day's grace if nothing else is said."""
    made = make_output(tmp_path)
    litter(made)
    before = keys(made)

    run_json("cleanup", made.uri)

    assert keys(made) == before


def test_a_running_shard_keeps_what_it_may_still_commit(tmp_path: Path) -> None:
    """An object whose manifest put is under way is of the present epoch."""
    made = make_output(tmp_path, stop_after={0: 1}, is_finished=False)
    under_way = layout.build_data_key(1, 0, 1, 2)
    made.store.put_create(under_way, b"not yet named")

    run_json("cleanup", made.uri, "--older-than", "0s")

    assert under_way in keys(made)


def test_a_shard_without_a_readable_manifest_keeps_everything(tmp_path: Path) -> None:
    """Its data is what a repair starts from."""
    made = make_output(tmp_path)
    made.store.put_overwrite(layout.build_shard_key(1, 0), b"x")
    made.store.delete(layout.build_shard_key(1, 1))
    before = keys(made)

    run_json("cleanup", made.uri, "--older-than", "0s")

    assert keys(made) == before


def test_a_snapshot_keeps_a_checkpoint_that_was_requeued(tmp_path: Path) -> None:
    """What a snapshot names stays readable, though the run has gone on without it."""
    made = make_output(tmp_path)
    run_json("snapshot", made.uri, "one")
    lost = made.manifest(0).checkpoints[0].key
    made.store.put_overwrite(lost, b"damaged")
    run_json("verify", made.uri, "--requeue", exit_code=1)

    run_json("cleanup", made.uri, "--older-than", "0s")

    assert lost in keys(made)


def next_generation(made: Made, *, is_finished: bool) -> None:
    """A second generation: without shards, so complete as soon as it says so."""
    made.store.put_overwrite("run.json", run_record.to_json(replace(made.record, generation=2)))
    made.store.put_create("g0002/plan.json", plan.to_json(replace(made.plan, generation=2, shards=())))
    if is_finished:
        made.store.put_create("g0002/_SUCCESS", b"")


def test_kept_logs_go_only_when_asked(tmp_path: Path) -> None:
    """They are what is left to look at after a failure."""
    made = make_output(tmp_path)
    key = build_log_key(1, "pod", "uid")
    made.store.put_create(key, b"the end")

    kept = run_json("cleanup", made.uri, "--older-than", "0s")
    was_there = key in keys(made)
    removed = run_json("cleanup", made.uri, "--older-than", "0s", "--logs")

    assert (kept["logs"]["objects"], was_there) == (0, True)
    assert (removed["logs"]["objects"], key in keys(made)) == (1, False)


def test_old_generations_go_only_when_asked(tmp_path: Path) -> None:
    """And then whole; the current one is not touched."""
    made = make_output(tmp_path)
    next_generation(made, is_finished=True)

    kept = run_json("cleanup", made.uri, "--older-than", "0s")
    removed = run_json("cleanup", made.uri, "--older-than", "0s", "--generations")

    assert kept["generations"]["objects"] == 0
    assert removed["generations"]["objects"] > 20
    assert keys(made) == {"run.json", "g0002/plan.json", "g0002/_SUCCESS"}


def test_old_generations_stay_until_the_current_one_is_complete(tmp_path: Path) -> None:
    """They are the only complete result there is."""
    made = make_output(tmp_path)
    next_generation(made, is_finished=False)
    before = keys(made)

    result = run("cleanup", made.uri, "--older-than", "0s", "--generations")

    assert result.exit_code == 64
    assert "generation 2 is not complete" in result.stderr
    assert keys(made) == before


def test_markers_of_success_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean-up that is killed leaves no generation that looks complete and is not."""
    made = make_output(tmp_path)
    next_generation(made, is_finished=True)
    deleted: list[str] = []
    monkeypatch.setattr("contract.store.commit.Committer.delete", lambda _, key: deleted.append(key))

    run_json("cleanup", made.uri, "--older-than", "0s", "--generations")

    assert deleted[0] == "g0001/_SUCCESS"
    assert len(deleted) > 20


@pytest.mark.parametrize("age", ["1", "-1h", "1w", "h", "1.5h"])
def test_an_age_that_is_none_is_wrong_usage(tmp_path: Path, age: str) -> None:
    """With an example of what is."""
    result = run("cleanup", tmp_path, "--older-than", age)

    assert result.exit_code == 2


def test_people_read_counts_and_sizes(tmp_path: Path) -> None:
    """A line each, in the conditional for a dry run."""
    made = make_output(tmp_path)
    litter(made)

    lines = run("cleanup", made.uri, "--older-than", "0s", "--dry-run").stdout.splitlines()

    assert lines[0] == "would remove 2 unnamed objects, 14 B"
