"""`inferencerun run` where things go wrong at the edges: starting, stopping, signing off, and what is no worker at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.run import load_run
from contract import layout, process_identity
from contract.names import ExitCode
from contract.store.local import LocalStore
from tests.cli.local_run import REPOSITORY, LocalRun, Result, wait_until
from tests.cli.test_run import SEQUENCES, expected_rows, gate_in, gated, open_gate, owners_at_gates

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def killed_at(run: LocalRun, ending: str, when: str, *arguments: str) -> int:
    """Exit status of a coordinator that is killed at its first write of a key with this ending."""
    command = [sys.executable, "-m", "tests.cli.killed_coordinator", ending, when, "run", str(run.write()), *arguments]
    environment = {**os.environ, "TMPDIR": str(run.directory)}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False, capture_output=True).returncode


@pytest.fixture
def run(tmp_path: Path) -> LocalRun:
    """A short run of kmer."""
    return LocalRun(directory=tmp_path, sequences=SEQUENCES)


def test_a_coordinator_killed_at_any_write_of_its_start_is_followed_by_one_that_completes(run: LocalRun) -> None:
    """Lock, run record and plan, just before and just after each, all on one output: the last start finds its way."""
    ends = [
        killed_at(run, ending, when)
        for ending in ("coordinator.json", "run.json", "plan.json")
        for when in ("before", "after")
    ]
    ended = run.run()

    assert ends == [-signal.SIGKILL] * 6
    assert (ended.code, ended.fields["records"], ended.fields["restarts"]["total"]) == (0, 40, 0), ended.errors
    assert run.call("verify", run.output).code == 0


def test_a_coordinator_killed_at_any_write_of_its_end_is_followed_by_one_that_completes(run: LocalRun) -> None:
    """Index and marker, just before and just after each: the next start writes the same bytes and says Succeeded."""
    complete = run.run()
    index, marker = (Path(run.output) / "g0001" / name for name in ("index.json", "_SUCCESS"))
    content = index.read_bytes()
    index.unlink()
    marker.unlink()

    ends = [killed_at(run, ending, when) for ending in ("index.json", "_SUCCESS") for when in ("before", "after")]
    again = run.run()

    assert ends == [-signal.SIGKILL] * 4
    assert index.read_bytes() == content
    assert (again.code, again.fields["records"]) == (0, complete.fields["records"]), again.errors
    assert run.call("verify", run.output).code == 0


def test_a_restart_that_is_killed_half_way_is_resumed_by_a_plain_start(run: LocalRun) -> None:
    """Killed between the new generation's record and its plan: generation 2 is completed, and there is no third."""
    run.run()

    killed = killed_at(run, "run.json", "after", "--restart")
    ended = run.run()

    assert killed == -signal.SIGKILL
    assert (ended.code, ended.fields["records"]) == (0, 40), ended.errors
    assert run.rows(generation=2) == run.rows(generation=1)
    assert not (Path(run.output) / "g0003").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_waits_for_a_mute_store_ends_at_once_when_asked_to(run: LocalRun, number: signal.Signals) -> None:
    """A server that takes connections and says nothing: Ctrl-C and SIGTERM need not wait for the store's timeouts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        run.store_uri = "s3://bucket/out"
        run.environment = {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        process = run.start()
        server.settimeout(30)
        connection, _ = server.accept()
        process.send_signal(number)
        ended = run.finish(process, timeout_s=5)
        connection.close()

    assert ended.code == -number


def test_the_workers_drain_before_a_coordinator_that_cannot_go_on_says_why(tmp_path: Path) -> None:
    """A manifest that cannot be read ends the coordinator; nobody is left behind, and what was finished is committed."""
    run = gated(tmp_path, gate_in(SEQUENCES, 9, 39))
    process = run.start()
    owners = wait_until(lambda: owners_at_gates(run))
    foreign = Path(run.output) / layout.build_shard_key(1, 1)

    foreign.write_text("no manifest")
    ended = run.finish(process)
    identities = [process_identity.parse(owner.uid) for owner in owners]
    foreign.unlink()
    left = [found.owner for found in run.manifests()]

    assert ended.code == ExitCode.INVALID
    assert "shards/00001.json" in ended.errors
    assert not any(process_identity.is_alive(identity) for identity in identities if identity)
    assert left == [None] * 3


def test_what_would_wait_for_ever_is_refused_with_the_remedy(run: LocalRun) -> None:
    """`suspend: true` and no workers make sense on a cluster, where somebody changes them while the run waits."""
    run.spec = {"suspend": True}
    suspended = run.run()
    run.spec = {"workers": {"count": 0}}
    idle = run.run()

    assert (suspended.code, idle.code) == (ExitCode.INVALID, ExitCode.INVALID)
    assert "spec.suspend is true" in suspended.errors
    assert "give --workers N" in idle.errors
    assert not Path(run.output).exists()


def test_a_file_of_the_user_stands_in_for_no_package(run: LocalRun) -> None:
    """`worker.py` and `contract.py` beside the spec are the user's own business; the workers are ours all the same."""
    for name in ("worker.py", "contract.py", "torch.py"):
        (run.directory / name).write_text("raise SystemExit(0)")

    done = subprocess.run(
        [str(Path(sys.executable).parent / "inferencerun"), "run", str(run.write()), "--json"],
        cwd=run.directory,
        env={**os.environ, "TMPDIR": str(run.directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert Result(done.returncode, done.stdout, done.stderr).fields["records"] == 40


def test_a_run_that_fails_says_where_the_logs_are(tmp_path: Path) -> None:
    """A shard that fails leaves logs, whose place is in the summary and on standard error."""
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES[:2])
    run.spec = {"input": {"uris": [str(tmp_path / "bad.fasta")]}, "workers": {"count": 1}}
    (tmp_path / "bad.fasta").write_text("not a FASTA file\n")

    failed = run.run()
    logs = Path(failed.fields["logs"])
    log = "".join(path.read_text() for path in logs.glob("*.log"))

    assert (failed.code, failed.fields["phase"]) == (1, "Failed")
    assert f"logs of the workers: {logs}" in failed.errors
    assert "shard failed" in log


def test_a_second_interrupt_kills_workers_that_do_not_drain(tmp_path: Path) -> None:
    """A model that hangs: the first Ctrl-C asks, the second kills; every shard is released, nothing is charged."""
    sequences = gate_in(SEQUENCES, 0, 39)
    run = gated(tmp_path, sequences)
    process = run.start()
    owners = wait_until(lambda: [found.owner for found in run.manifests() if found.owner is not None])

    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "interrupt again" not in process.stderr.readline():
        pass
    for owner in owners:
        identity = process_identity.parse(owner.uid)
        assert identity is not None
        os.kill(identity.pid, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    ended = run.finish(process)
    open_gate(tmp_path)
    resumed = run.run()

    assert ended.code == 130, ended.errors
    assert ended.fields["restarts"]["counted"] == 0
    assert [found.owner for found in run.manifests()] == [None] * 4
    assert resumed.code == 0, resumed.errors
    assert run.rows() == expected_rows(sequences)


def test_an_archived_run_is_refused_and_stays_as_it_is(run: LocalRun) -> None:
    """After `archive` the same command, with --restart too, says that the run is read-only and what to do."""
    run.run()
    archived = run.call("archive", run.output)
    before = LocalStore(run.output).get(layout.RUN_KEY).body

    ends = [run.run(), run.run("--restart")]

    assert archived.code == 0, archived.errors
    assert [end.code for end in ends] == [ExitCode.INVALID] * 2
    assert all("archived and read-only; choose another output.uri" in end.errors for end in ends)
    assert LocalStore(run.output).get(layout.RUN_KEY).body == before


def test_a_shard_that_takes_too_long_is_charged_and_fails_once_its_budget_is_spent(tmp_path: Path) -> None:
    """attemptTimeoutSeconds: a worker that drains in good order must not give the shard back as if nothing had happened."""
    run = gated(tmp_path, gate_in(SEQUENCES, 0))
    run.spec = {
        "input": {"shardBytes": 1 << 20},
        "workers": {"attemptTimeoutSeconds": 1, "count": 1},
        "failurePolicy": {"maxShardRetries": 0, "backoff": {"retrySeconds": 0}},
    }

    ended = run.run()
    failed = [found for found in run.manifests() if found.failure is not None]

    assert (ended.code, ended.fields["phase"], ended.fields["shards"]["failed"]) == (1, "Failed", 1), ended.errors
    assert ended.fields["restarts"] == {"total": 1, "counted": 1, "byClass": {"Transient": 1}}
    assert "raise workers.attemptTimeoutSeconds" in failed[0].failure.detail


def test_relative_places_are_those_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and weights become absolute; what is no path (a seed, a callable) stays as it is."""
    monkeypatch.chdir(tmp_path)
    sources = {}
    for name, source in (("esm2", "weights/8M/"), ("esm2", "random:1"), ("esm2", "s3://b/w"), ("torch", "m:build")):
        model = {"name": name, "source": source, "parameters": {"size": "8M"} if source == "random:1" else {}}
        run = LocalRun(directory=tmp_path, sequences=["MKV"], model=model, store_uri="out")
        sources[source] = load_run(run.write()).spec.model.source
        assert load_run(run.write()).spec.output.uri == f"file://{tmp_path}/out"

    assert sources == {
        "weights/8M/": f"file://{tmp_path}/weights/8M",
        "random:1": "random:1",
        "s3://b/w": "s3://b/w",
        "m:build": "m:build",
    }
