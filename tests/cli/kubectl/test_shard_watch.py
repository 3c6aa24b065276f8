"""Tests of reading manifests beside the main thread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cli.kubectl.shard_watch import ShardWatch
from contract import layout, run_record
from tests.cli.kubectl.cluster import resource
from tests.cli.outputs import make_output


def test_only_what_has_changed_is_read_again(tmp_path: Path) -> None:
    """And a new generation begins with nothing of the one before."""
    made = make_output(tmp_path, stop_after={1: 2}, is_finished=False)
    watch = ShardWatch(resource(made.uri))

    watch._read()
    first = watch.manifests
    watch._read()
    second = watch.manifests
    made.store.put_overwrite(layout.RUN_KEY, run_record.to_json(replace(made.record, generation=2, version=2)))
    watch._read()

    assert first is not None
    assert second is not None
    assert first.keys() == {item.shard for item in made.plan.shards}
    assert all(second[shard] is found for shard, found in first.items())
    assert (watch.manifests, watch.problem) == ({}, "")


def test_a_store_that_is_not_there_is_a_problem_and_no_error(tmp_path: Path) -> None:
    """Until it is there."""
    watch = ShardWatch(resource(str(tmp_path / "out")))

    watch._read()
    problem = watch.problem
    make_output(tmp_path)
    watch._read()

    assert "no run here" in problem
    assert watch.problem == ""
    assert watch.manifests
