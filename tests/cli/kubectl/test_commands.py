"""Tests of the commands that look at a run and change its spec, over an API server in miniature."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contract import layout, plan, run_record
from contract.manifest import Attempt
from contract.names import ANNOTATION_RETRY, FailureClass
from controller.ledger import Ledger, to_text
from tests.cli.kubectl.cluster import NAMESPACE, RUNS, FakeCluster
from tests.cli.outputs import make_output, run
from tests.controller.api_server import refusal

PROGRESS = {
    "records": 120_000,
    "bytes": 52_428_800,
    "totalBytes": 104_857_600,
    "percent": "50.0",
    "recordsPerSecond": "812",
    "etaSeconds": 185,
}
STATUS = {
    "phase": "Running",
    "progress": PROGRESS,
    "shards": {"total": 8, "complete": 3, "running": 2, "failed": 0},
    "workers": {"desired": 2, "active": 2, "ready": 1},
    "restarts": {"total": 4, "counted": 1, "byClass": {"OutOfMemory": 1, "SpotEviction": 3}},
    "quarantined": 7,
    "goodput": "0.93",
    "memory": "zlib:secret of the controller",
    "conditions": [
        {"type": "Accepted", "status": "True", "reason": "Valid", "lastTransitionTime": "2026-03-01T11:00:00Z"}
    ],
    "lastFailures": [
        {
            "time": "2026-03-01T11:30:00Z",
            "pod": "swissprot-1-0",
            "node": "node-b",
            "class": "OutOfMemory",
            "evidence": "OOMKilled",
            "advice": "raise the memory limit",
        }
    ],
}


ATTEMPT = Attempt(
    pod="swissprot-0-0",
    uid="uid-1",
    node="node-b",
    epoch=1,
    failure_class=FailureClass.OUT_OF_MEMORY,
    evidence="OOMKilled",
    counted=True,
    ended_at=datetime(2026, 3, 1, 11, 30, tzinfo=UTC),
    held_seconds=60.0,
)


def test_status_is_one_screen(cluster: FakeCluster) -> None:
    """Phase, progress, workers with their state, conditions, failures with advice."""
    cluster.apply(**STATUS)
    cluster.add_pod(0)
    cluster.add_pod(1, node="", state="none")

    result = cluster.run("status", "swissprot", "--no-shards")

    assert result.exit_code == 0
    for text in (
        "50.0 % of 100.0 MiB",
        "812 records/s, ETA 3 min 05 s",
        "8 total, 3 complete, 2 running, 0 failed",
        "4, of which 1 count: 1 OutOfMemory, 3 SpotEviction",
        "raise the memory limit",
    ):
        assert text in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["swissprot-0-0", "running", "node-a", "-", "-", "-", "-"] in lines
    assert ["swissprot-1-0", "waits", "for", "a", "node", "-", "-", "-", "-", "-"] in lines


def test_status_json_has_all_but_the_controllers_memory(cluster: FakeCluster) -> None:
    """One line for programs."""
    cluster.apply(**STATUS)
    cluster.add_pod(0)

    found = cluster.run_json("status", "swissprot", "--no-shards")

    assert (found["run"], found["namespace"], found["output"]) == ("swissprot", NAMESPACE, "file:///out")
    assert found["status"]["progress"] == PROGRESS
    assert "memory" not in found["status"]
    assert [item["pod"] for item in found["workers"]] == ["swissprot-0-0"]


def test_status_says_which_shard_a_worker_holds(cluster: FakeCluster, tmp_path: Path) -> None:
    """From the store, by the pod's uid, not by its name."""
    made = make_output(tmp_path, stop_after={1: 2}, is_finished=False)
    cluster.apply(output=made.uri, **STATUS)
    cluster.add_pod(0, uid="uid-0")

    found = cluster.run_json("status", "swissprot")

    assert found["storeProblem"] is None
    assert [(item["shard"], item["records"]) for item in found["workers"]] == [(1, 8)]


def test_a_store_that_refuses_costs_the_shards_only(cluster: FakeCluster, tmp_path: Path) -> None:
    """The rest is shown, with what stood in the way, and whose credentials they were."""
    cluster.apply(output=f"file://{tmp_path}/nothing", **STATUS)

    result = cluster.run("status", "swissprot")

    assert result.exit_code == 0
    assert "Shards are not shown: " in result.stdout
    assert "is a path in the worker pods" in result.stdout
    assert "50.0 %" in result.stdout


def test_a_run_that_nobody_has_looked_at(cluster: FakeCluster) -> None:
    """Without a status there is little to say, and that is said."""
    cluster.apply()

    result = cluster.run("status", "swissprot")

    assert result.exit_code == 0
    assert "no controller has looked at it" in result.stdout
    assert "'kubectl inferencerun doctor swissprot' finds out" in result.stdout


def test_a_change_that_nobody_has_looked_at(cluster: FakeCluster) -> None:
    """A status about an older spec says so."""
    cluster.apply(**STATUS)
    cluster.run("scale", "swissprot", "5")

    assert "the last change of the spec has not been looked at yet" in cluster.run("status", "swissprot").stdout


@pytest.mark.parametrize("command", [("status",), ("suspend",), ("scale", "2"), ("shards",), ("results",), ("logs",)])
def test_an_unknown_run_is_an_error_with_a_remedy(cluster: FakeCluster, command: tuple[str, ...]) -> None:
    """The name, the namespace, and how to find the right ones."""
    name, *rest = command
    result = cluster.run(name, "nobody", *rest)

    assert result.exit_code == 64
    assert f"no InferenceRun 'nobody' in namespace '{NAMESPACE}'" in result.stderr


def test_a_cluster_without_the_definition(cluster: FakeCluster) -> None:
    """It is not the run that is missing, but the operator."""
    cluster.server.fault = lambda _method, _path: refusal(404, "NotFound", "the server could not find the resource")

    result = cluster.run("status", "swissprot")

    assert result.exit_code == 64
    assert "knows no InferenceRun" in result.stderr


def test_a_user_without_rights_is_told_who_can_help(cluster: FakeCluster) -> None:
    """The server's words, and what to do."""
    cluster.server.fault = lambda _method, _path: refusal(403, "Forbidden", 'User "jane" cannot get resource')

    result = cluster.run("status", "swissprot")

    assert result.exit_code == 64
    assert 'User "jane" cannot get resource' in result.stderr
    assert "administers the cluster" in result.stderr


def test_no_kubeconfig_is_an_error_with_a_remedy(cluster: FakeCluster) -> None:
    """A file that is not there, a context that is not in it."""
    cluster.apply()

    context = cluster.run("status", "swissprot", "--context", "other")
    cluster.kubeconfig.unlink()
    missing = cluster.run("status", "swissprot")

    for result in (context, missing):
        assert result.exit_code == 64
        assert "no access to a cluster" in result.stderr
        assert "--context" in result.stderr


def test_suspend_and_resume_change_the_spec_alone(cluster: FakeCluster) -> None:
    """And say what will happen."""
    cluster.apply(**STATUS)

    suspended = cluster.run("suspend", "swissprot")
    is_suspended = cluster.resource()["spec"]["suspend"]
    resumed = cluster.run("resume", "swissprot")

    assert is_suspended is True
    assert "2 worker(s) commit what is finished and end" in suspended.stdout
    assert cluster.resource()["spec"]["suspend"] is False
    assert "will go on with up to 2 worker(s)" in resumed.stdout


def test_waiting_has_an_end(cluster: FakeCluster) -> None:
    """A controller that does nothing makes --wait fail, with where the run stands and what to do next."""
    cluster.apply(**STATUS)

    result = cluster.run("suspend", "swissprot", "--wait", "--timeout", "0")

    assert result.exit_code == 1
    assert "'kubectl inferencerun doctor swissprot'" in result.stderr


def test_waiting_sees_what_the_controller_has_done(cluster: FakeCluster) -> None:
    """Suspended, and no worker left."""
    cluster.apply(**{**STATUS, "phase": "Suspended", "workers": {"desired": 0, "active": 0, "ready": 0}})

    result = cluster.run("suspend", "swissprot", "--wait", "--timeout", "0")

    assert result.exit_code == 0, result.output
    assert "no worker is left" in result.stdout


def test_resume_waits_for_a_worker_at_work(cluster: FakeCluster) -> None:
    """A phase alone says nothing of it: pods may wait for a node."""
    cluster.apply(**{**STATUS, "workers": {"desired": 2, "active": 2, "ready": 0}})
    waiting = cluster.run("resume", "swissprot", "--wait", "--timeout", "0")
    cluster.apply(**STATUS)
    there = cluster.run("resume", "swissprot", "--wait", "--timeout", "0")

    assert waiting.exit_code == 1
    assert there.exit_code == 0
    assert "goes on: Running, 1 worker(s) at work" in there.stdout


def test_scale_goes_through_the_subresource(cluster: FakeCluster) -> None:
    """So that the right to scale is enough; the change is told."""
    cluster.apply(**STATUS)

    result = cluster.run("scale", "swissprot", "5")

    assert cluster.resource()["spec"]["workers"]["count"] == 5
    assert ("PATCH", f"{RUNS}/swissprot/scale") in cluster.server.requests
    assert "2 -> 5 workers" in result.stdout


def test_retry_sets_shards_back_and_wakes_the_controller(cluster: FakeCluster, tmp_path: Path) -> None:
    """First the store, by the command that is there, then the annotation."""
    made = make_output(tmp_path)
    cluster.apply(output=made.uri, phase="Failed")

    result = cluster.run("retry", "swissprot", "--quarantined")

    assert result.exit_code == 0, result.output
    assert "2 quarantined record(s) among them" in result.stdout
    assert sum(len(item.quarantined) for item in made.manifests()) == 0
    assert cluster.resource()["metadata"]["annotations"][ANNOTATION_RETRY]


def test_retry_can_leave_the_store_alone(cluster: FakeCluster) -> None:
    """Who has no credentials for it can still close the breakers."""
    cluster.apply(output="file:///nowhere", phase="Failed")

    refused, woken = cluster.run("retry", "swissprot"), cluster.run("retry", "swissprot", "--only-wake")

    assert refused.exit_code == 64
    assert woken.exit_code == 0
    assert cluster.resource()["metadata"]["annotations"][ANNOTATION_RETRY]


def test_a_store_that_refuses_leaves_the_run_asleep(cluster: FakeCluster) -> None:
    """A controller that is woken before anything has changed would fail again."""
    cluster.apply(output="file:///nowhere", phase="Failed")

    cluster.run("retry", "swissprot")

    assert "annotations" not in cluster.resource()["metadata"]


def test_nothing_is_retried_of_a_run_that_succeeded(cluster: FakeCluster) -> None:
    """But for its quarantined records; what `verify --requeue` has set back it does not know, so it can be woken."""
    cluster.apply(phase="Succeeded")

    assert cluster.run("retry", "swissprot").exit_code == 64
    assert cluster.run("retry", "swissprot", "--only-wake").exit_code == 0


@pytest.mark.parametrize("command", ["shards", "failures", "quarantine", "verify"])
def test_commands_on_the_store_are_those_of_inferencerun(cluster: FakeCluster, tmp_path: Path, command: str) -> None:
    """The same words for the name as for the output's URI."""
    made = make_output(tmp_path)
    cluster.apply(output=made.uri, **{**STATUS, "lastFailures": []})

    by_name, by_uri = cluster.run(command, "swissprot"), run(command, made.uri)

    assert by_name.exit_code == by_uri.exit_code == 0, by_name.output
    assert _without_ages(by_name.stdout) == _without_ages(by_uri.stdout)


def test_failures_show_workers_that_never_held_a_shard(cluster: FakeCluster, tmp_path: Path) -> None:
    """The status alone knows of them; those with an attempt are not told twice, nor beside another generation."""
    made = make_output(tmp_path)
    made.overwrite(replace(made.manifest(0), attempts=(replace(ATTEMPT, pod="swissprot-1-0"),)))
    held, (first,) = STATUS["lastFailures"], STATUS["lastFailures"]
    unheld = {**first, "pod": "swissprot-0-4", "class": "Configuration", "evidence": "exit 64", "advice": "mend it"}
    cluster.apply(output=made.uri, **{**STATUS, "lastFailures": [*held, unheld]})

    text, found = cluster.run("failures", "swissprot").stdout, cluster.run_json("failures", "swissprot")
    other = cluster.run_json("failures", "swissprot", "--generation", "1")

    (line,) = [line for line in text.splitlines() if "swissprot-0-4" in line]
    assert line.split() == [
        "2026-03-01T11:30:00Z",
        "Configuration",
        "swissprot-0-4",
        "node-b",
        "exit",
        "64",
        "mend",
        "it",
    ]
    assert text.count("swissprot-1-0") == 1
    assert [item["pod"] for item in found["withoutShard"]] == ["swissprot-0-4"]
    assert other["withoutShard"] == []


def test_failures_of_the_status_need_no_store(cluster: FakeCluster) -> None:
    """They are shown; what stands in the way of the others is an error all the same."""
    cluster.apply(output="file:///nowhere", **STATUS)

    result = cluster.run("failures", "swissprot")

    assert result.exit_code == 64
    assert "raise the memory limit" in result.stdout
    assert "is a path in the worker pods" in result.stderr


@pytest.mark.parametrize("command", ["shards", "failures", "quarantine", "verify", "export", "report", "results"])
def test_rows_of_another_run_are_shown_as_such(cluster: FakeCluster, tmp_path: Path, command: str) -> None:
    """A run that restarted on the output of another has the current generation; each command says so, with the way back."""
    made = make_output(tmp_path)
    taken = replace(made.record, name="later", generation=2, version=2)
    made.store.put_overwrite(layout.RUN_KEY, run_record.to_json(taken))
    plan_body = made.store.get(layout.build_plan_key(1)).body
    made.store.put_create(
        layout.build_plan_key(2), plan.to_json(replace(plan.from_json(plan_body, where=""), generation=2))
    )
    cluster.apply("swissprot", output=made.uri, **{**STATUS, "memory": to_text(Ledger(store_generation=1))})
    cluster.apply("later", output=made.uri, **{**STATUS, "memory": to_text(Ledger(store_generation=2))})
    rest = {"export": [tmp_path / "rows.npy", "--partial"], "report": ["--html", tmp_path / "page.html"]}.get(
        command, []
    )

    shown = cluster.run(command, "swissprot", *rest)
    asked = cluster.run(command, "swissprot", *rest, "--generation", "1")
    own = cluster.run(command, "later", *rest)

    said = "generation 2, the current one here, is run 'later''s; that of run 'swissprot' is 1"
    assert said in (shown.stdout if command == "results" else shown.stderr)
    for result in (asked, own):
        assert "the current one here" not in result.output


def test_errors_of_the_store_speak_of_the_run_by_its_name(cluster: FakeCluster, tmp_path: Path) -> None:
    """Each remedy is a command that works for a run of a cluster."""
    made = make_output(tmp_path)
    cluster.apply(output=made.uri, **STATUS)
    made.store.put_overwrite(made.manifest(1).checkpoints[0].key, b"damaged")

    result = cluster.run("verify", "swissprot", "--requeue")

    assert "run 'kubectl inferencerun verify swissprot -n proteins --requeue'" in result.stdout
    assert "'kubectl inferencerun retry swissprot -n proteins --only-wake' lets them run" in result.stdout
    assert "OUTPUT_URI" not in result.output


def test_export_takes_its_destination_after_the_name(cluster: FakeCluster, tmp_path: Path) -> None:
    """As `inferencerun export` does."""
    made = make_output(tmp_path)
    cluster.apply(output=made.uri, **STATUS)

    result = cluster.run("export", "swissprot", tmp_path / "rows.npy")

    assert result.exit_code == 0, result.output
    assert (tmp_path / "rows.npy").exists()


def test_results_of_a_complete_run_load(cluster: FakeCluster, tmp_path: Path) -> None:
    """Counts, places, and three lines of Python that do what they say."""
    made = make_output(tmp_path)
    cluster.apply(output=made.uri, phase="Succeeded")

    text, found = cluster.run("results", "swissprot").stdout, cluster.run_json("results", "swissprot")
    names: dict[str, object] = {}
    snippet = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    exec("\n".join(snippet), names)  # noqa: S102

    assert len(snippet) == 3
    assert names["rows"]["sequence_ids"] == [item[2] for item in made.rows()[:4]]  # type: ignore[index]
    assert found["complete"] is True
    assert (found["records"], found["quarantined"]) == (78, 2)
    assert found["index"].endswith("/g0001/index.json")


def test_results_of_a_run_at_work(cluster: FakeCluster, tmp_path: Path) -> None:
    """What is there already, and that it is not all."""
    made = make_output(tmp_path, only_shards=[0, 1], stop_after={1: 2}, is_finished=False)
    cluster.apply(output=made.uri, **STATUS)

    text, found = cluster.run("results", "swissprot").stdout, cluster.run_json("results", "swissprot")

    assert found["complete"] is False
    assert found["index"] is None
    assert 0 < found["records"] < 78
    assert "not written yet" in text
    assert "export swissprot rows.npy --partial" in text


def _without_ages(text: str) -> str:
    return "\n".join(line.rsplit("  ", 1)[0] if line.endswith(" ago") else line for line in text.splitlines())
