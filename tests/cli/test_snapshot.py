"""Tests of `inferencerun snapshot`: a cut that names what was there, once and for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import cli.snapshot
from cli.output import Manifests, Output, open_output, read_shards, read_snapshots
from cli.snapshots import Cut, Snapshot, SnapshotShard, from_json, to_json
from contract import layout
from contract.errors import Corrupt
from contract.manifest import ShardStatus
from contract.ranges import count
from tests.cli.outputs import NOW, Made, make_output, run, run_json


def test_a_snapshot_names_each_shards_version(tmp_path: Path) -> None:
    """ETag, commit id, epoch, checkpoints and rows of every claimed shard; a run that stands still is cut at one instant."""
    made = make_output(tmp_path, only_shards=(0, 1), stop_after={1: 1}, is_finished=False)
    etags = {item.key: item.etag for item in made.store.list("g0001/shards/")}

    said = run_json("snapshot", made.uri, "before-upgrade")

    assert (said["name"], said["generation"], said["cut"]) == ("before-upgrade", 1, "instant")
    assert [item["shard"] for item in said["shards"]] == [0, 1]
    for item in said["shards"]:
        current = made.manifest(item["shard"])
        assert item["etag"] == etags[layout.build_shard_key(1, item["shard"])]
        assert (item["commitId"], item["epoch"], item["status"]) == (current.commit_id, current.epoch, current.status)
        assert item["checkpoints"] == [checkpoint.key for checkpoint in current.checkpoints]
        assert item["records"] == count(current.done)
    assert said["records"] == sum(item["records"] for item in said["shards"])


def test_a_snapshot_is_written_once(tmp_path: Path) -> None:
    """The name stays with the first cut, whatever comes later; names that are none are refused."""
    made = make_output(tmp_path)
    run_json("snapshot", made.uri, "one")
    before = made.store.get("g0001/snapshots/one.json")

    again, odd = run("snapshot", made.uri, "one"), run("snapshot", made.uri, "../one")

    assert (again.exit_code, odd.exit_code) == (64, 64)
    assert "there is a snapshot 'one' already" in again.stderr
    assert "use lower-case letters" in odd.stderr
    assert made.store.get("g0001/snapshots/one.json") == before


def test_snapshots_are_listed(tmp_path: Path) -> None:
    """By name, each with its cut and counts."""
    made = make_output(tmp_path)
    assert "There is no snapshot." in run("snapshot", made.uri, "--list").stdout
    run_json("snapshot", made.uri, "b")
    run("snapshot", made.uri, "a")

    found = run_json("snapshot", made.uri, "--list")["snapshots"]

    assert [(item["name"], item["cut"], item["records"]) for item in found] == [
        ("a", "instant", 78),
        ("b", "instant", 78),
    ]


@pytest.mark.parametrize("arguments", [(), ("name", "--list")])
def test_a_name_or_the_list(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Neither or both is wrong usage."""
    assert run("snapshot", str(tmp_path), *arguments).exit_code == 2


def moving(
    made: Made, monkeypatch: pytest.MonkeyPatch, num_moves: int
) -> tuple[Callable[[Output, list[int]], Manifests], list[list[int]]]:
    """Let shard 0 change right after each of the first reads, as a worker's commits do; also what was read each time."""
    reads: list[list[int]] = []

    def read_then_move(output: Output, shards: list[int]) -> Manifests:
        found = read_shards(output, shards)
        reads.append(shards)
        if len(reads) <= num_moves:
            current = made.manifest(0)
            made.overwrite(replace(current, version=current.version + 1, commit_id=f"move-{len(reads)}"))
        return found

    monkeypatch.setattr(cli.snapshot, "read_shards", read_then_move)
    return read_then_move, reads


def test_a_cut_is_taken_again_until_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what moved is read again, and what is named is what stands there."""
    made = make_output(tmp_path)
    _, reads = moving(made, monkeypatch, num_moves=2)

    said = run_json("snapshot", made.uri, "one")

    assert said["cut"] == "instant"
    assert said["shards"][0]["commitId"] == made.manifest(0).commit_id == "move-2"
    assert reads == [[shard.shard for shard in made.plan.shards], [0], [0]]


def test_a_run_that_never_stands_still_is_cut_per_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rounds is bounded, and the snapshot says what it is."""
    made = make_output(tmp_path)
    _, reads = moving(made, monkeypatch, num_moves=100)

    said = run_json("snapshot", made.uri, "one")

    assert (said["cut"], len(reads)) == ("perShard", cli.snapshot.MAX_ROUNDS)


def test_an_unreadable_manifest_refuses_the_cut(tmp_path: Path) -> None:
    """A cut without one shard would look like one of a run that never claimed it."""
    made = make_output(tmp_path)
    made.store.put_overwrite(layout.build_shard_key(1, 2), b"x")

    result = run("snapshot", made.uri, "one")

    assert result.exit_code == 64
    assert "inferencerun repair" in result.stderr
    assert read_snapshots(open_output(made.uri)) == ()


A_SNAPSHOT = Snapshot(
    name="one",
    generation=1,
    created_at=NOW,
    cut=Cut.PER_SHARD,
    shards=(
        SnapshotShard(
            shard=3,
            etag="e",
            commit_id="c",
            epoch=2,
            status=ShardStatus.RUNNING,
            records=5,
            checkpoints=("g0001/data/00003/e0002-000001.pt",),
        ),
    ),
)


def test_the_document_round_trips() -> None:
    """What is read is what was written."""
    assert from_json(to_json(A_SNAPSHOT), where="x") == A_SNAPSHOT


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "g0001/data/00004/e0002-000001.pt", "g0002/data/00003/e0002-000001.pt"]
)
def test_a_key_outside_the_shard_is_refused(key: str) -> None:
    """A snapshot can make nobody look elsewhere."""
    shard = replace(A_SNAPSHOT.shards[0], checkpoints=(key,))

    with pytest.raises(Corrupt, match="names"):
        from_json(to_json(replace(A_SNAPSHOT, shards=(shard,))), where="x")
