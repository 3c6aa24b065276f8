"""Tests of `watch`: plain lines, JSON, the picture on a terminal, and when it ends."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from cli.kubectl.watch import Picture, drawn
from cli.kubectl.workers import WorkerRow
from tests.cli.kubectl.cluster import CREATED, RUNS, FakeCluster
from tests.cli.kubectl.test_commands import STATUS
from tests.cli.outputs import make_output
from tests.controller.api_server import refusal

OVER = {**STATUS, "phase": "Succeeded"}


def test_it_ends_with_the_run(cluster: FakeCluster) -> None:
    """One look suffices for a run that is over: a line about it, and exit code 0."""
    cluster.apply(**OVER)
    cluster.add_pod(0)

    result = cluster.run("watch", "swissprot", "--no-shards")

    assert result.exit_code == 0
    assert "Succeeded; 50.0 %, 120000 records, 812/s, ETA 3 min 05 s; shards 3/8 complete" in result.stdout
    assert "swissprot-0-0 running on node-a" in result.stdout


def test_a_failed_run_is_exit_code_1(cluster: FakeCluster) -> None:
    """So that a script may wait for the end."""
    cluster.apply(**{**STATUS, "phase": "Failed", "message": "4 shard(s) failed"})

    result = cluster.run("watch", "swissprot", "--no-shards")

    assert result.exit_code == 1
    assert "Failed: 4 shard(s) failed" in result.stdout


def test_json_is_a_line_for_each_look(cluster: FakeCluster, tmp_path: Path) -> None:
    """With the shard of each worker."""
    made = make_output(tmp_path, stop_after={1: 2}, is_finished=False)
    cluster.apply(output=made.uri, **OVER)
    cluster.add_pod(0, uid="uid-0")

    result = cluster.run("watch", "swissprot", "--json")
    (line,) = result.stdout.splitlines()
    found = json.loads(line)

    assert found["status"]["phase"] == "Succeeded"
    assert [(item["pod"], item["shard"]) for item in found["workers"]] == [("swissprot-0-0", 1)]


def test_it_outlives_an_api_server_that_is_away(cluster: FakeCluster) -> None:
    """What it could not read is said, and looked at again; a line comes only when something is new."""
    cluster.apply(**STATUS)
    looks = iter(range(100))

    def fault(method: str, path: str) -> object:
        if path != f"{RUNS}/swissprot" or method != "GET":
            return None
        number = next(looks)
        if number == 6:
            cluster.apply(**OVER)
        return refusal(503, "ServiceUnavailable", "etcd is away") if 2 <= number <= 4 else None

    cluster.server.fault = fault  # type: ignore[assignment]

    result = cluster.run("watch", "swissprot", "--no-shards", "--every", "0.2")

    assert result.exit_code == 0, result.output
    assert "etcd is away" in result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["Running;", "Succeeded;"]


@pytest.mark.parametrize("problem", ["", "the store [red]refused[/red]"])
def test_the_picture_shows_workers_and_takes_markup_as_text(problem: str) -> None:
    """A table with rate and age, under a bar; nothing in it acts on the terminal."""
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    row = WorkerRow(
        pod="run-0-0",
        slot=0,
        state="running",
        node="node-a",
        shard=3,
        records=4096,
        records_per_s=81.25,
        last_commit_at=datetime(2026, 3, 1, 11, 59, 48, tzinfo=UTC),
    )
    run = {"metadata": {"name": "run", "generation": 1}, "status": {**STATUS, "observedGeneration": 1}}
    screen = io.StringIO()

    Console(file=screen, width=160).print(drawn(Picture(run, (row,), problem, now, "nothing has looked")))

    shown = screen.getvalue()
    assert "run  Running; 50.0 %" in shown
    assert ["run-0-0", "running", "node-a", "3", "4096", "81.2", "12", "s", "ago"] in [
        line.split() for line in shown.splitlines()
    ]
    assert problem in shown
    assert "nothing has looked" in shown


def test_a_run_that_nothing_looks_at_is_not_waited_for_in_silence(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds after it was made, once, with the command that finds out why; until then one may be on its way."""
    cluster.apply()
    created_at = datetime.fromisoformat(CREATED)
    times = iter([9, 11, 13, 15])
    monkeypatch.setattr("cli.kubectl.watch.current_time", lambda: created_at + timedelta(seconds=next(times)))
    looks = iter(range(4))

    def sleep(_seconds: float) -> None:
        if next(looks) == 2:
            cluster.apply(**OVER)

    monkeypatch.setattr("cli.kubectl.watch.time.sleep", sleep)

    result = cluster.run("watch", "swissprot", "--no-shards")

    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        "Nothing has looked at the run in 11 s: is there a controller? 'kubectl inferencerun doctor swissprot' finds out."
    ]


def test_an_output_that_cannot_be_does_not_hide_the_run(cluster: FakeCluster) -> None:
    """A spec that the controller refuses is looked at all the same."""
    cluster.apply(output="ftp://host/out", **{**STATUS, "phase": "Failed"})

    result = cluster.run("watch", "swissprot")

    assert "Failed; 50.0 %" in result.stdout
    assert "'ftp://host/out' is no store" in result.stderr
