"""`inferencerun report`: from an output URI to a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from contract import layout, run_record
from tests.cli.outputs import make_output, run


def test_report_writes_one_file_and_says_what_it_shows(tmp_path: Path) -> None:
    """A page about a finished run; --json names file, size and phase."""
    made, path = make_output(tmp_path), tmp_path / "report.html"

    result = run("report", made.uri, "--html", path, "--json")
    plain = run("report", made.uri, "--html", path)

    found = json.loads(result.stdout)
    assert (found["html"], found["bytes"], found["phase"]) == (str(path), path.stat().st_size, "Succeeded")
    assert f"{path}: " in plain.stdout
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert "report.css" not in path.read_text()
    assert ".tiles" in path.read_text()
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []


def test_the_page_is_named_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the working directory, when no name is given; wherever a run.json that was tampered with points to."""
    made = make_output(tmp_path)
    monkeypatch.chdir(tmp_path)

    plain = run("report", made.uri)
    tampered = replace(made.record, name=f"../{made.record.name}-2")
    made.store.put_overwrite(layout.RUN_KEY, run_record.to_json(tampered))
    run("report", made.uri)

    assert plain.stdout.startswith(f"{made.record.name}.html: ")
    assert sorted(path.name for path in tmp_path.glob("*.html")) == [
        f"{made.record.name}-2.html",
        f"{made.record.name}.html",
    ]


def test_a_running_run_is_reported_as_such(tmp_path: Path) -> None:
    """With what is there so far."""
    made, path = make_output(tmp_path, only_shards=(0, 1), stop_after={1: 1}, is_finished=False), tmp_path / "r.html"

    result = run("report", made.uri, "--html", path)

    assert result.exit_code == 0
    assert "Running" in path.read_text()


def test_a_place_without_a_run_or_plan_gives_no_file(tmp_path: Path) -> None:
    """Exit 64 and the reason; nothing is written."""
    made, path = make_output(tmp_path), tmp_path / "r.html"
    made.store.delete(layout.build_plan_key(1))

    nothing = run("report", tmp_path / "elsewhere", "--html", path)
    unplanned = run("report", made.uri, "--html", path)

    assert (nothing.exit_code, "no run here" in nothing.stderr) == (64, True)
    assert (unplanned.exit_code, "no plan yet" in unplanned.stderr) == (64, True)
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """With its name, before anything half is left."""
    made = make_output(tmp_path)

    result = run("report", made.uri, "--html", tmp_path / "no" / "such" / "r.html")

    assert result.exit_code == 1
    assert "r.html" in result.stderr


def test_an_unreadable_manifest_exits_1_and_the_page_says_so(tmp_path: Path) -> None:
    """The rest is shown."""
    made, path = make_output(tmp_path), tmp_path / "r.html"
    made.store.put_overwrite(layout.build_shard_key(1, 1), b"x")

    result = run("report", made.uri, "--html", path)

    assert result.exit_code == 1
    assert "Manifests that cannot be read, and are missing below: 1." in path.read_text()
