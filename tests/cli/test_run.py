"""`inferencerun run` end to end: real processes, real signals, a directory or a real S3 server as the store."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from contract import process_identity
from contract.manifest import Owner
from contract.names import ExitCode
from tests.cli.local_run import REPOSITORY, LocalRun, wait_until
from tests.gated_model import Gated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
SEQUENCES = [LETTERS[number % 20] * (1 + number % 7) + "MKVA" * (number % 5) + "A" for number in range(40)]


def gated(tmp_path: Path, sequences: list[str] | None = None, **parameters: object) -> LocalRun:
    """A run of the gated model; the gate is closed until `tmp_path / "gate"` exists."""
    return LocalRun(
        directory=tmp_path,
        sequences=sequences or SEQUENCES,
        model={
            "name": "torch",
            "source": "tests.gated_model:build",
            "parameters": {"gate": str(tmp_path / "gate"), **parameters},
            "maxTokensPerBatch": 40,
        },
    )


def expected_rows(sequences: list[str]) -> dict[str, list[float]]:
    """What the gated model gives for every record that it can embed."""
    return {f"r{number}": Gated()([sequence])[0].tolist() for number, sequence in enumerate(sequences)}


def gate_in(sequences: list[str], *positions: int) -> list[str]:
    """The sequences with gates at these places."""
    return ["GATE" + item if number in positions else item for number, item in enumerate(sequences)]


def owners_at_gates(run: LocalRun) -> list[Owner]:
    """Both workers' owners once they hold the first and the last shard, where gates 9 and 39 stop them; else nothing."""
    held = {found.shard: found.owner for found in run.manifests() if found.owner is not None}
    return list(held.values()) if set(held) == {0, 3} and run.num_done() >= 5 else []


def open_gate(tmp_path: Path) -> None:
    """Let everybody through."""
    (tmp_path / "gate").touch()


def test_a_run_succeeds_verifies_and_is_a_no_op_when_started_again(tmp_path: Path) -> None:
    """Apply, succeed, verify; the same command then finds nothing to do and says so with the same numbers."""
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES)

    first = run.run()
    verified = run.call("verify", run.output, "--json")
    again = run.run()

    assert (first.code, first.fields["phase"], first.fields["records"]) == (0, "Succeeded", 40), first.errors
    assert verified.code == 0, verified.output
    assert (again.code, again.fields["records"], again.fields["restarts"]["total"]) == (0, 40, 0)
    assert (Path(run.output) / "g0001" / "_SUCCESS").exists()


def test_ctrl_c_drains_and_the_same_command_resumes(tmp_path: Path) -> None:
    """An interrupt ends with 130, every finished batch committed and every shard released; the rerun completes."""
    sequences = gate_in(SEQUENCES, 9, 39)
    run = gated(tmp_path, sequences)
    process = run.start()
    wait_until(lambda: run.num_done() >= 5)

    process.send_signal(signal.SIGINT)
    interrupted = run.finish(process)
    owners = [found.owner for found in run.manifests()]
    open_gate(tmp_path)
    resumed = run.run()

    assert interrupted.code == 130, interrupted.errors
    assert interrupted.fields["interrupted"] is True
    assert owners == [None] * len(owners)
    assert set(interrupted.fields["restarts"]["byClass"]) <= {"Intended"}
    assert resumed.code == 0, resumed.errors
    assert run.rows() == expected_rows(sequences)


def test_workers_of_a_killed_coordinator_drain_and_end_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """SIGKILL of the coordinator: its workers notice, give their shards back and end; the rerun loses nothing."""
    sequences = gate_in(SEQUENCES, 9, 39)
    run = gated(tmp_path, sequences)
    process = run.start()
    owners = wait_until(lambda: owners_at_gates(run))
    identities = [process_identity.parse(owner.uid) for owner in owners]

    process.kill()
    process.communicate()
    wait_until(lambda: not any(process_identity.is_alive(identity) for identity in identities if identity))
    left = [found.owner for found in run.manifests()]
    open_gate(tmp_path)
    resumed = run.run()

    assert left == [None] * len(left)
    assert (resumed.code, resumed.fields["phase"]) == (0, "Succeeded"), resumed.errors
    assert run.rows() == expected_rows(sequences)


def test_a_second_coordinator_on_the_same_output_is_refused(tmp_path: Path) -> None:
    """While one works, another start ends at once, names the process that works, and disturbs nothing."""
    sequences = gate_in(SEQUENCES, 9)
    run = gated(tmp_path, sequences)
    process = run.start()
    wait_until(lambda: run.num_done() >= 5)

    second = run.run()
    open_gate(tmp_path)
    first = run.finish(process)

    assert second.code == ExitCode.TRANSIENT
    assert f"process {process.pid} on this host" in second.errors
    assert (first.code, first.fields["restarts"]["total"]) == (0, 0)
    assert run.rows() == expected_rows(sequences)


def test_a_worker_that_is_killed_and_one_that_is_drained_cost_nothing_but_time(tmp_path: Path) -> None:
    """SIGKILL of one worker and SIGTERM of another: both replaced, nothing charged, every record exactly once."""
    sequences = gate_in(SEQUENCES, 9, 39)
    run = gated(tmp_path, sequences)
    process = run.start()
    owners = wait_until(lambda: owners_at_gates(run))

    for owner, number in zip(owners, (signal.SIGKILL, signal.SIGTERM), strict=True):
        os.kill(process_identity.parse(owner.uid).pid, number)
    wait_until(lambda: sum(found.restarts.total for found in run.manifests()) >= 2)
    open_gate(tmp_path)
    ended = run.finish(process)

    assert ended.code == 0, ended.errors
    assert ended.fields["restarts"] == {"total": 2, "counted": 0, "byClass": {"NodeLost": 1, "SpotEviction": 1}}
    assert run.rows() == expected_rows(sequences)


def test_records_that_kill_raise_or_give_nan_are_quarantined_and_nothing_else(tmp_path: Path) -> None:
    """One record of each kind among forty: exactly these are quarantined, each with its class; no worker is lost."""
    sequences = [*SEQUENCES]
    sequences[7], sequences[18], sequences[29] = "SEGV", "RAISE", "NAN"
    run = gated(tmp_path, sequences)

    ended = run.run()
    listed = run.call("quarantine", run.output, "--json").fields

    assert ended.code == 0, ended.errors
    assert (ended.fields["records"], ended.fields["quarantined"], ended.fields["restarts"]["total"]) == (37, 3, 0)
    found = {item["id"]: item["class"] for item in listed["quarantined"]}
    assert found == {"r7": "PoisonInput", "r18": "PoisonInput", "r29": "NonFinite"}
    good = {name: row for name, row in expected_rows(SEQUENCES).items() if name not in found}
    assert run.rows() == good
    assert run.call("verify", run.output).code == 0


def test_batches_that_do_not_fit_are_split_and_the_budget_sticks_to_the_shard(tmp_path: Path) -> None:
    """A model that runs out of memory above two records: everything completes, and the hint is in the manifest."""
    run = gated(tmp_path, max_records=2)

    ended = run.run()

    assert (ended.code, ended.fields["quarantined"]) == (0, 0), ended.errors
    assert any(found.hints.token_budget for found in run.manifests())
    assert run.rows() == expected_rows(SEQUENCES)


def test_a_model_that_cannot_be_loaded_ends_the_command_at_once(tmp_path: Path) -> None:
    """Nobody but whoever started it can mend the model, so no probe is waited for, and no shard is failed."""
    run = gated(tmp_path)
    run.model = {"name": "torch", "source": "tests.gated_model:always_raises"}

    ended = run.run()

    assert (ended.code, ended.fields["phase"]) == (1, "CircuitOpen"), ended.errors
    assert ended.fields["restarts"]["total"] <= 2
    assert ended.fields["shards"]["failed"] == 0
    assert "no weights here" in ended.fields["message"]
    assert "mend it, then run this again" in ended.fields["message"]
    logs = list((Path(run.output) / "g0001" / "logs").glob("test-run-*.txt"))
    assert [path for path in logs if "no weights here" in path.read_text()], "the log of a failed worker is kept"


def test_a_refused_run_goes_on_once_its_module_is_mended(tmp_path: Path) -> None:
    """The same command, after the user has mended the code that `source` names, opens no generation and succeeds."""
    module = tmp_path / "mended_later.py"
    module.write_text("import torch\ndef build():\n    raise ValueError('no weights yet')\n")
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES, environment={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"})
    run.model = {"name": "torch", "source": "mended_later:build"}
    refused = run.run()

    module.write_text("import torch\ndef build():\n    return lambda values: torch.ones(len(values), 2)\n")
    ended = run.run()

    assert refused.code == 1, refused.errors
    assert (ended.code, ended.fields["records"]) == (0, len(SEQUENCES)), ended.errors
    assert not (Path(run.output) / "g0002").exists()


def test_restart_opens_a_generation_and_keeps_the_old_one(tmp_path: Path) -> None:
    """--restart computes everything anew beside the old rows."""
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES)
    run.run()

    again = run.run("--restart")

    assert again.code == 0, again.errors
    assert run.rows(generation=2) == run.rows(generation=1)
    assert len(run.rows(generation=2)) == 40


def test_another_model_or_input_on_the_same_output_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    """IncompatibleRun names what differs; the directory is byte for byte what it was, but for the coordinator's record."""
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES)
    run.run()

    def content() -> dict[str, bytes]:
        files = (path for path in Path(run.output).rglob("*") if path.is_file() and path.name != "coordinator.json")
        return {str(path): path.read_bytes() for path in files}

    before = content()
    run.spec = {"output": {"dtype": "float16"}}
    refused = run.run()

    assert refused.code == ExitCode.INVALID
    assert "model.dtype: this spec has float16, the output has float32" in refused.errors
    assert content() == before


def test_a_bad_input_object_fails_its_shard_and_no_other(tmp_path: Path) -> None:
    """A file that is no FASTA fails with object, offset and remedy; the good file is complete; the run says Failed."""
    (tmp_path / "bad.fasta").write_text("this is not a FASTA file\n" * 3)
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES)
    run.spec = {"input": {"uris": [str(tmp_path / "in.fasta"), str(tmp_path / "bad.fasta")]}}

    ended = run.run()

    assert (ended.code, ended.fields["phase"], ended.fields["shards"]["failed"]) == (1, "Failed", 1), ended.errors
    assert ended.fields["records"] == 40
    failures = run.call("failures", run.output, "--json").output
    assert "bad.fasta" in failures
    assert "offset 0" in failures


def test_resume_restart_begins_anew_once_a_generation_has_failed(tmp_path: Path) -> None:
    """Going on with failed shards alone would only fail again; one that was interrupted is gone on with."""
    (tmp_path / "bad.fasta").write_text("this is not a FASTA file\n" * 3)
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES)
    run.spec = {"input": {"uris": [str(tmp_path / "in.fasta"), str(tmp_path / "bad.fasta")]}, "resume": "Restart"}
    run.run()

    again = run.run()

    assert (again.code, again.fields["phase"]) == (1, "Failed"), again.errors
    assert len(run.rows(generation=2)) == 40


def test_mistakes_in_the_spec_are_all_named_at_once(tmp_path: Path) -> None:
    """Exit 64 and a line for each mistake, with its path; nothing is made."""
    run = LocalRun(directory=tmp_path, sequences=SEQUENCES)
    run.spec = {"workers": {"count": -1}, "checkpoint": {"everySeconds": 0}, "modle": {}}

    ended = run.run()

    assert ended.code == ExitCode.INVALID
    for path in ("spec.workers.count", "spec.checkpoint.everySeconds", "spec.modle"):
        assert path in ended.errors
    assert not Path(run.output).exists()


def test_a_run_resumed_under_another_name_verifies(tmp_path: Path) -> None:
    """The output's identity is its input and model; whoever goes on with it writes the name that run.json holds."""
    sequences = gate_in(SEQUENCES, 9, 39)
    run = gated(tmp_path, sequences)
    process = run.start()
    wait_until(lambda: owners_at_gates(run))
    process.send_signal(signal.SIGINT)
    run.finish(process)
    open_gate(tmp_path)

    run.name = "another-name"
    resumed = run.run()
    verified = run.call("verify", run.output, "--json")

    assert resumed.code == 0, resumed.errors
    assert verified.code == 0, verified.output
