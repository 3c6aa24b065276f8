"""Tests of `inferencerun repair`, `retry` and `archive`: the changes a person makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from contract import layout, manifest, run_record, transitions
from contract.manifest import Failure, ShardManifest, ShardStatus
from contract.names import FailureClass
from contract.store.protocol import Body, ETag
from tests.cli.outputs import NOW, OWNER, Made, make_output, put_checkpoint, quarantined, run, run_json

KEY = layout.build_shard_key(1, 0)


def finish_shard(made: Made, shard: int) -> None:
    """Let a worker do what is left of a pending shard."""
    current = transitions.claimed(made.manifest(shard), owner=OWNER, commit_id="claim-again", now=NOW)
    todo = [item for item in made.records[shard] if not manifest.is_done(current, item.ordinal)]
    sound = [item for item in todo if item.problem is None]
    refused = [quarantined(item) for item in todo if item.problem is not None]
    done = transitions.committed(
        current,
        commit_id="done-again",
        checkpoint=put_checkpoint(made, current, sound, number=1) if sound else None,
        quarantined=refused,
        records=len(made.records[shard]),
    )
    made.overwrite(done)


def test_an_unreadable_manifest_starts_over_above_every_epoch(tmp_path: Path) -> None:
    """Its records run again to a fine run; the damaged bytes are kept beside it."""
    made = make_output(tmp_path)
    damaged = made.store.get(KEY).body[:200]
    made.store.put_overwrite(KEY, damaged)
    made.store.put_create(layout.build_data_key(1, 0, 7, 1), b"of a later epoch")

    said = run_json("repair", made.uri, "--shard", "0")

    current = made.manifest(0)
    assert (current.status, current.epoch, said["epoch"]) == (ShardStatus.PENDING, 8, 8)
    assert said["keptAs"].startswith(f"{KEY}.corrupt-")
    assert made.store.get(said["keptAs"]).body == damaged
    assert run_json("status", made.uri)["phase"] == "Pending"
    finish_shard(made, 0)
    made.finish()
    assert run_json("verify", made.uri)["ok"]


def test_an_epoch_that_the_damaged_text_shows_counts(tmp_path: Path) -> None:
    """Its owner may be alive with nothing written yet."""
    made = make_output(tmp_path)
    made.store.put_overwrite(KEY, b'{"checkpoints":[],"epoch":41,"hist')

    said = run_json("repair", made.uri, "--shard", "0")

    assert said["epoch"] == 42


def test_a_manifest_that_is_gone_while_its_data_is_there_starts_over(tmp_path: Path) -> None:
    """Workers never make it again by themselves."""
    made = make_output(tmp_path)
    made.store.delete(KEY)

    text = run("repair", made.uri, "--shard", "0").stdout
    made.store.delete(KEY)
    said = run_json("repair", made.uri, "--shard", "0")

    assert text == "shard 0 is pending again at epoch 2; start the run again\n"
    assert (said["keptAs"], made.manifest(0).status, made.manifest(0).epoch) == (None, ShardStatus.PENDING, 2)


@pytest.mark.parametrize(
    ("shard", "message"),
    [("0", "the manifest can be read"), ("5", "was never claimed"), ("99", "so no shard 99")],
)
def test_there_must_be_something_to_repair(tmp_path: Path, shard: str, message: str) -> None:
    """A readable manifest is never reset."""
    made = make_output(tmp_path, only_shards=(0,), is_finished=False)
    before = made.store.get(KEY)

    result = run("repair", made.uri, "--shard", shard)

    assert result.exit_code == 64
    assert message in result.stderr
    assert made.store.get(KEY) == before


def test_a_newer_manifest_is_left_to_a_newer_version(tmp_path: Path) -> None:
    """It is not damaged, only unknown here."""
    made = make_output(tmp_path)
    made.store.put_overwrite(KEY, made.store.get(KEY).body.replace(b'"formatVersion":1', b'"formatVersion":99'))
    before = made.store.get(KEY)

    result = run("repair", made.uri, "--shard", "0")

    assert result.exit_code == 64
    assert "upgrade" in result.stderr
    assert made.store.get(KEY) == before


def failed(current: ShardManifest) -> ShardManifest:
    """A shard whose budget was spent after its first checkpoint."""
    kept = current.checkpoints[:1]
    return replace(
        current,
        status=ShardStatus.FAILED,
        checkpoints=kept,
        done=((kept[0].first, kept[0].next),),
        failure=Failure(failure_class=FailureClass.TRANSIENT, detail="budget spent"),
        restarts=replace(current.restarts, total=3, counted=3),
    )


def test_failed_shards_get_a_fresh_budget(tmp_path: Path) -> None:
    """What they have done stays, the rest runs again, and the run is no longer called finished meanwhile."""
    made = make_output(tmp_path, is_finished=False)
    made.overwrite(failed(made.manifest(0)))
    made.finish()
    before = made.manifest(0)

    said = run_json("retry", made.uri)

    after = made.manifest(0)
    assert (said["retried"], said["held"]) == ([0], [])
    assert (after.status, after.epoch, after.failure) == (ShardStatus.PENDING, before.epoch + 1, None)
    assert (after.checkpoints, after.restarts.total, after.restarts.counted) == (before.checkpoints, 3, 0)
    assert after.quarantined == before.quarantined != ()
    assert run_json("status", made.uri)["phase"] == "Pending"
    finish_shard(made, 0)
    made.finish()
    assert run_json("verify", made.uri)["ok"]


def test_quarantined_records_run_again_when_asked(tmp_path: Path) -> None:
    """Only they; a retry without the option leaves them."""
    made = make_output(tmp_path)

    nothing = run_json("retry", made.uri)
    still_finished = run_json("status", made.uri)["phase"]
    said = run_json("retry", made.uri, "--quarantined")

    assert (nothing["retried"], still_finished) == ([], "Succeeded")
    assert (len(said["retried"]), said["quarantinedRecords"]) == (2, 2)
    assert run_json("quarantine", made.uri)["quarantined"] == []
    for shard in said["retried"]:
        finish_shard(made, shard)
    made.finish()
    assert run_json("verify", made.uri)["quarantined"] == 2


def test_a_held_shard_is_not_retried(tmp_path: Path) -> None:
    """Its worker goes on undisturbed; the command says so and exits 1."""
    made = make_output(tmp_path, stop_after={0: 2}, is_finished=False)
    before = made.manifest(0)

    said = run_json("retry", made.uri, "--quarantined", exit_code=1)

    assert said["held"] == [0]
    assert made.manifest(0) == before
    assert "not changed, held by a worker or just changed: 0" in run("retry", made.uri, "--quarantined").stdout


@pytest.mark.parametrize("command", [("retry",), ("verify", "--requeue")])
def test_a_shard_that_changes_at_the_same_moment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """Somebody claims it between our read and our put: the put is refused, and nothing of theirs is lost."""
    made = make_output(tmp_path, is_finished=False)
    made.overwrite(failed(made.manifest(0)))
    made.store.put_overwrite(made.manifest(0).checkpoints[0].key, b"damaged")
    put_update = type(made.store).put_update
    theirs = replace(
        made.manifest(0), status=ShardStatus.PENDING, failure=None, commit_id="theirs", history=("theirs",)
    )

    def change_first(store: object, key: str, body: Body, etag: ETag) -> ETag:
        made.overwrite(theirs)
        return put_update(store, key, body, etag)  # type: ignore[arg-type]

    monkeypatch.setattr(type(made.store), "put_update", change_first)

    said = run_json(command[0], made.uri, *command[1:], exit_code=1)

    assert said["held"] == [0]
    assert made.manifest(0) == theirs


def test_a_coordinator_that_finalises_meanwhile_does_not_leave_a_false_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Index and _SUCCESS, written from what it had read before, are gone when the command returns."""
    made = make_output(tmp_path, is_finished=False)
    made.overwrite(failed(made.manifest(0)))
    made.finish()
    put_update = type(made.store).put_update

    def finalise_first(store: object, key: str, body: Body, etag: ETag) -> ETag:
        made.finish()
        return put_update(store, key, body, etag)  # type: ignore[arg-type]

    monkeypatch.setattr(type(made.store), "put_update", finalise_first)

    run_json("retry", made.uri)

    assert not {"g0001/_SUCCESS", "g0001/index.json"} & {item.key for item in made.store.list("g0001/")}


def test_a_complete_run_is_archived(tmp_path: Path) -> None:
    """run.json says so, by a change of its own; twice is no error."""
    made = make_output(tmp_path)

    first, second = run_json("archive", made.uri), run_json("archive", made.uri)

    record = run_record.from_json(made.store.get("run.json").body, where="run.json")
    assert first == second
    assert (record.is_archived, record.version) == (True, made.record.version + 1)
    assert record.history[-1] == record.commit_id
    assert run_json("status", made.uri)["archived"] is True
    assert "is archived" in run("archive", made.uri).stdout


def test_an_unfinished_run_is_not_archived(tmp_path: Path) -> None:
    """It could never be finished."""
    made = make_output(tmp_path, stop_after={0: 1}, is_finished=False)

    result = run("archive", made.uri)

    assert result.exit_code == 64
    assert "not complete" in result.stderr


@pytest.mark.parametrize("command", [("retry",), ("retry", "--quarantined"), ("repair", "--shard", "0")])
def test_an_archived_run_does_not_change(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Commands that would change its results refuse."""
    made = make_output(tmp_path)
    run_json("archive", made.uri)
    before = sorted((item.key, item.etag) for item in made.store.list())

    result = run(command[0], made.uri, *command[1:])

    assert result.exit_code == 64
    assert "archived" in result.stderr
    assert sorted((item.key, item.etag) for item in made.store.list()) == before
