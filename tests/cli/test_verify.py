"""Tests of `inferencerun verify`: each kind of damage is named, and only damage is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from contract import documents, index, layout, manifest, plan, run_record, transitions
from contract.flight import MAX_ID_LENGTH
from contract.manifest import Checkpoint, ShardManifest, ShardStatus
from contract.names import FailureClass
from contract.ranges import count
from tests.cli.outputs import NOW, OWNER, Made, make_output, put_checkpoint, run, run_json, serialised

SHARD = 0
"""The shard that the tests damage; its second checkpoint holds the quarantined record 5 in its range."""


def test_an_undamaged_run_is_fine(tmp_path: Path) -> None:
    """All records of the input are counted once, as a row or in quarantine, and nothing is reported."""
    made = make_output(tmp_path)

    found = run_json("verify", made.uri)

    assert (found["ok"], found["problems"], found["finished"]) == (True, [], True)
    assert (found["inputRecords"], found["records"], found["quarantined"]) == (80, 78, 2)
    assert found["shards"] == len(made.plan.shards) > 3


def test_a_run_in_progress_is_verified_for_what_it_has(tmp_path: Path) -> None:
    """Records that nobody has done yet are no problem while the run goes on, and the input behind them is not read."""
    made = make_output(tmp_path, only_shards=(0, 1, 2), stop_after={1: 1, 2: 0}, is_finished=False)

    found = run_json("verify", made.uri)

    assert (found["ok"], found["finished"], found["shards"]) == (True, False, 3)
    assert found["records"] == sum(count(item.done) for item in made.manifests()) > 0
    assert found["inputRecords"] == len(made.records[0]) + made.manifest(1).settled[-1][1]
    assert run("verify", made.uri).stdout.startswith("fine so far")


def chosen(made: Made) -> Checkpoint:
    """The checkpoint that the tests damage."""
    return made.manifest(SHARD).checkpoints[1]


def replace_checkpoint(made: Made, body: bytes) -> None:
    """Other bytes in the chosen checkpoint, and a manifest and index that know them: only what is inside is off."""
    item, current = chosen(made), made.manifest(SHARD)
    made.store.put_overwrite(item.key, body)
    named = replace(item, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
    made.overwrite(replace(current, checkpoints=tuple(named if c == item else c for c in current.checkpoints)))
    made.finish()


def content_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Made], None]:
    """Damage inside the chosen checkpoint."""

    def damage(made: Made) -> None:
        checkpoint = torch.load(BytesIO(made.store.get(chosen(made).key).body), weights_only=True)
        change(checkpoint)
        replace_checkpoint(made, serialised(checkpoint))

    return damage


def metadata_with(**values: object) -> Callable[[Made], None]:
    """Other metadata in the chosen checkpoint."""
    return content_with(lambda checkpoint: checkpoint["metadata"].update(values))


def manifest_with(change: Callable[[ShardManifest], ShardManifest]) -> Callable[[Made], None]:
    """A changed manifest, and an index that follows it."""

    def damage(made: Made) -> None:
        made.overwrite(change(made.manifest(SHARD)))
        made.finish()

    return damage


def flip_byte(made: Made) -> None:
    """One bit of the chosen checkpoint."""
    key = chosen(made).key
    body = bytearray(made.store.get(key).body)
    body[len(body) // 2] ^= 1
    made.store.put_overwrite(key, bytes(body))


def drop_row(checkpoint: dict[str, Any]) -> None:
    """The last record, from everywhere in the checkpoint."""
    checkpoint["embeddings"] = checkpoint["embeddings"][:-1].clone()
    checkpoint["sequence_ids"] = checkpoint["sequence_ids"][:-1]
    for name in ("ordinals", "offsets"):
        checkpoint["metadata"][name] = checkpoint["metadata"][name][:-1].clone()


def set_value(position: tuple[int, int], value: float) -> Callable[[dict[str, Any]], object]:
    """One number of the embeddings."""
    return lambda checkpoint: checkpoint["embeddings"].__setitem__(position, value)


CHECKPOINT_DAMAGE: dict[str, tuple[Callable[[Made], None], str]] = {
    "missing": (lambda made: made.store.delete(chosen(made).key), "the object is missing"),
    "empty": (lambda made: made.store.put_overwrite(chosen(made).key, b""), "the object is empty"),
    "cut": (
        lambda made: made.store.put_overwrite(chosen(made).key, made.store.get(chosen(made).key).body[:-9]),
        "bytes, but the manifest says",
    ),
    "one bit": (flip_byte, "does not match the manifest's sha256"),
    "not torch": (lambda made: replace_checkpoint(made, b"no zip at all"), "torch cannot load it"),
    "pickled code": (
        lambda made: replace_checkpoint(made, serialised({"embeddings": OWNER, "sequence_ids": [], "metadata": {}})),
        "torch cannot load it",
    ),
    "other content": (lambda made: replace_checkpoint(made, serialised({"rows": []})), "not a checkpoint"),
    "a bare tensor": (lambda made: replace_checkpoint(made, serialised(torch.ones(2))), "not a checkpoint"),
    "no records": (content_with(lambda c: c.update(sequence_ids=[])), "it holds no record"),
    "ids not text": (content_with(lambda c: c.update(sequence_ids=[1, 2, 3])), "not a list of strings"),
    "fewer ids": (content_with(lambda c: c["sequence_ids"].pop()), "ordinals is not an int64 tensor of 2 for 2 ids"),
    "fewer offsets": (metadata_with(offsets=torch.tensor([1])), "offsets is not an int64 tensor of 3"),
    "fewer rows": (
        content_with(lambda c: c.update(embeddings=c["embeddings"][:2].clone())),
        "2 rows of embeddings for 3",
    ),
    "flat": (content_with(lambda c: c.update(embeddings=c["embeddings"].reshape(-1))), "not a 2-D tensor"),
    "integers": (content_with(lambda c: c.update(embeddings=c["embeddings"].int())), "not floating point"),
    "not a number": (content_with(set_value((1, 2), float("nan"))), "row 1 of embeddings is not finite (1 such rows)"),
    "infinite": (content_with(set_value((2, 0), float("inf"))), "row 2 of embeddings is not finite"),
    "other dtype": (content_with(lambda c: c.update(embeddings=c["embeddings"].half())), "but the run stores float32"),
    "disordered": (metadata_with(ordinals=torch.tensor([7, 6, 4])), "ordinals are not strictly increasing"),
    "elsewhere": (metadata_with(ordinals=torch.tensor([4, 6, 8])), "lie outside the manifest's [4, 8)"),
    "row_splits": (metadata_with(row_splits=torch.tensor([0, 1, 2, 3])), "row_splits and the run's kind"),
    "fewer records": (content_with(drop_row), "2 records, but the manifest says 3"),
    **{
        f"other {name}": (metadata_with(**{name: value}), f"metadata says {name} {value!r}")
        for name, value in {
            "run": "another",
            "generation": 2,
            "shard": 1,
            "epoch": 9,
            "number": 9,
            "object": "file:///elsewhere",
            "model": "esm2",
            "dtype": "float64",
            "kind": "perToken",
        }.items()
    },
    "other id": (content_with(lambda c: c["sequence_ids"].__setitem__(1, "stranger")), "record 6 is 'stranger'"),
    "other offset": (
        content_with(lambda c: c["metadata"]["offsets"].__setitem__(0, 3)),
        "record 4 is 'rec0_4' at offset 3",
    ),
    "swapped": (content_with(lambda c: c["sequence_ids"].reverse()), "record 4 is 'rec0_7'"),
}


@pytest.mark.parametrize("name", CHECKPOINT_DAMAGE)
def test_damage_to_a_checkpoint_is_named_and_only_its_records_run_again(tmp_path: Path, name: str) -> None:
    """Verify names the very object, exits 1, and --requeue sets back that checkpoint alone."""
    made = make_output(tmp_path)
    before = made.manifest(SHARD)
    damage, expected = CHECKPOINT_DAMAGE[name]
    damage(made)
    damaged_key = chosen(made).key

    found = run_json("verify", made.uri, "--requeue", exit_code=1)

    assert {problem["object"] for problem in found["problems"]} == {damaged_key}
    assert expected in found["problems"][0]["problem"]
    assert "--requeue" in found["problems"][0]["remedy"]
    assert found["requeued"] == [damaged_key]
    after = made.manifest(SHARD)
    assert (after.status, after.epoch) == (ShardStatus.PENDING, before.epoch + 1)
    assert [c.key for c in after.checkpoints] == [c.key for c in before.checkpoints if c.key != damaged_key]
    assert not [item for item in made.store.list("g0001/") if item.key.endswith(("_SUCCESS", "index.json"))]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (lambda good: good + 1, "row_splits do not start at 0 and grow"),
        (lambda good: good.flip(0), "row_splits do not start at 0 and grow"),
        (lambda good: good[:-1].clone(), "row_splits is not an int64 tensor of 4 for 3 ids"),
        (lambda good: good * 2, "rows of embeddings for"),
        (None, "rows of embeddings for"),
    ],
)
def test_damaged_row_splits_are_named(
    tmp_path: Path, splits: Callable[[torch.Tensor], torch.Tensor] | None, expected: str
) -> None:
    """Per token, the splits decide whose a row is."""
    made = make_output(tmp_path, kind="perToken")

    def change(checkpoint: dict[str, Any]) -> None:
        good = checkpoint["metadata"].pop("row_splits")
        if splits is not None:
            checkpoint["metadata"]["row_splits"] = splits(good)

    content_with(change)(made)

    found = run_json("verify", made.uri, exit_code=1)

    assert [problem["object"] for problem in found["problems"]] == [chosen(made).key]
    assert expected in found["problems"][0]["problem"]


def edit_plan(made: Made, **changes: object) -> None:
    """Other members of the stored plan, with a checksum that fits."""
    key = layout.build_plan_key(1)
    fields = documents.decode(plan.KIND, plan.FORMAT_VERSION, made.store.get(key).body, where=key)
    made.store.put_overwrite(key, documents.encode(plan.KIND, plan.FORMAT_VERSION, {**fields, **changes}))


def edit_index(**changes: object) -> Callable[[Made], None]:
    """Other members of the stored index, with a checksum that fits."""

    def damage(made: Made) -> None:
        key = layout.build_index_key(1)
        fields = documents.decode(index.KIND, index.FORMAT_VERSION, made.store.get(key).body, where=key)
        made.store.put_overwrite(key, documents.encode(index.KIND, index.FORMAT_VERSION, {**fields, **changes}))

    return damage


def without_last_checkpoint(made: Made) -> None:
    """A manifest that claims completeness although a checkpoint has gone from it."""
    current = made.manifest(SHARD)
    made.overwrite(replace(current, checkpoints=current.checkpoints[:-1]))
    made.finish()


def done_twice(made: Made) -> None:
    """A second checkpoint of records that have one already."""
    current = made.manifest(SHARD)
    again = put_checkpoint(made, replace(current, epoch=2), made.records[SHARD][:2], number=1)
    made.overwrite(replace(current, epoch=2, checkpoints=(*current.checkpoints, again)))
    made.finish()


def forget_quarantine(made: Made) -> None:
    """A record that is neither done nor in quarantine."""
    current = made.manifest(SHARD)
    made.overwrite(replace(current, quarantined=()))
    made.finish()


def cut_input(made: Made) -> None:
    """An input object that is shorter than planned."""
    path = Path(made.plan.objects[0].uri.removeprefix("file://"))
    path.write_text(path.read_text()[:-20])


def quarantine_with(**changes: object) -> Callable[[Made], None]:
    """Other facts about the quarantined record."""
    return manifest_with(
        lambda current: replace(current, quarantined=(replace(current.quarantined[0], **changes),))  # type: ignore[arg-type]
    )


OTHER_DAMAGE: dict[str, tuple[Callable[[Made], None], str, str]] = {
    "manifest unreadable": (
        lambda made: made.store.put_overwrite("g0001/shards/00000.json", b'{"epoch":1'),
        "g0001/shards/00000.json",
        "not JSON",
    ),
    "manifest of another range": (
        manifest_with(lambda current: replace(current, end=current.end + 1)),
        "g0001/shards/00000.json",
        "but the plan has",
    ),
    "manifest beyond the plan": (
        lambda made: made.store.put_create(
            "g0001/shards/00777.json", manifest.to_json(replace(made.manifest(0), shard=777, checkpoints=(), done=()))
        ),
        "g0001/shards/00777.json",
        "the plan has no such shard",
    ),
    "rows and done differ": (
        without_last_checkpoint,
        "g0001/shards/00000.json",
        "checkpoint rows and done records differ",
    ),
    "records without a row": (without_last_checkpoint, "input-0.fasta", "have no row and are not in quarantine"),
    "a record neither done nor quarantined": (forget_quarantine, "input-0.fasta", "1 record(s), up to offset"),
    "a record done twice": (done_twice, "input-0.fasta", "it has 2 places"),
    "more records counted": (
        manifest_with(lambda current: replace(current, records=(current.records or 0) + 1)),
        "g0001/shards/00000.json",
        "but the input's range has",
    ),
    "quarantine of another id": (
        quarantine_with(id="other"),
        "g0001/shards/00000.json",
        "quarantined record 5 is 'other'",
    ),
    "quarantine beyond the input": (
        quarantine_with(ordinal=99),
        "g0001/shards/00000.json",
        "it quarantines 1 record(s) beyond",
    ),
    "input cut": (cut_input, "input-0.fasta", "has changed since it was planned"),
    "plan of another generation": (lambda made: edit_plan(made, generation=3), "g0001/plan.json", "of generation 3"),
    "plan cut otherwise": (lambda made: edit_plan(made, shardBytes=100), "g0001/plan.json", "are not those that"),
    "run.json of other input": (
        lambda made: made.store.put_overwrite(
            "run.json",
            run_record.to_json(replace(made.record, input=replace(made.record.input, total_bytes=1))),
        ),
        "g0001/plan.json",
        "other input than run.json",
    ),
    "index missing": (
        lambda made: made.store.delete("g0001/index.json"),
        "g0001/index.json",
        "missing beside _SUCCESS",
    ),
    "index unreadable": (
        lambda made: made.store.put_overwrite("g0001/index.json", b"{}"),
        "g0001/index.json",
        "not a Index document",
    ),
    "index lacks files": (
        edit_index(files=[]),
        "g0001/index.json",
        "it names 0 that the manifests do not have and lacks",
    ),
    "index counts otherwise": (edit_index(records=1), "g0001/index.json", "it says 1, the manifests 78"),
    "index of another quarantine": (edit_index(quarantined=[]), "g0001/index.json", "lacks 2"),
    "index before the end": (
        manifest_with(
            lambda current: replace(
                current, status=ShardStatus.RUNNING, owner=OWNER, records=None, version=current.version
            )
        ),
        "g0001/index.json",
        "1 shard(s), e.g. 0, are not final",
    ),
}


@pytest.mark.parametrize("name", OTHER_DAMAGE)
def test_damage_elsewhere_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    """Verify exits 1 and says which object is off and why, with a remedy."""
    made = make_output(tmp_path)
    damage, where, expected = OTHER_DAMAGE[name]
    damage(made)

    found = run_json("verify", made.uri, exit_code=1)

    named = [item for item in found["problems"] if item["object"].endswith(where) and expected in item["problem"]]
    assert named, found["problems"]
    assert all(item["remedy"] for item in found["problems"])


@pytest.mark.parametrize("key", ["run.json", "g0001/plan.json"])
def test_a_damaged_document_that_all_else_hangs_on_ends_the_check(tmp_path: Path, key: str) -> None:
    """Without run record or plan nothing can be judged: the error names the document."""
    made = make_output(tmp_path)
    made.store.put_overwrite(key, made.store.get(key).body.replace(b"1", b"2"))

    result = run("verify", made.uri, "--json")

    assert (result.exit_code, result.stdout) == (64, "")
    assert key in result.stderr


def test_the_input_can_be_left_out(tmp_path: Path) -> None:
    """--no-input checks the output in itself, even when the input is gone, and still finds its damage."""
    made = make_output(tmp_path)
    cut_input(made)

    fine = run_json("verify", made.uri, "--no-input")
    flip_byte(made)
    damaged = run_json("verify", made.uri, "--no-input", exit_code=1)

    assert (fine["checkpoints"], fine["inputRecords"]) == (damaged["checkpoints"], 0)
    assert [item["object"] for item in damaged["problems"]] == [chosen(made).key]


def test_a_corrupt_checkpoint_does_not_hide_other_damage(tmp_path: Path) -> None:
    """Every problem of a shard is listed in one call; records of a corrupt checkpoint are not reported missing besides."""
    made = make_output(tmp_path)
    first, *_, last = made.manifest(SHARD).checkpoints
    made.store.delete(first.key)
    made.store.put_overwrite(last.key, b"")

    found = run_json("verify", made.uri, exit_code=1)

    assert [item["object"] for item in found["problems"]] == [first.key, last.key]


def test_a_checkpoint_whose_rows_all_differ_is_reported_by_a_few(tmp_path: Path) -> None:
    """The list stays short whatever the number of rows."""
    made = make_output(tmp_path, per_checkpoint=50, shard_bytes=10_000)
    checkpoint = torch.load(BytesIO(made.store.get(made.manifest(0).checkpoints[0].key).body), weights_only=True)
    checkpoint["sequence_ids"] = ["x"] * len(checkpoint["sequence_ids"])
    item, current = made.manifest(0).checkpoints[0], made.manifest(0)
    body = serialised(checkpoint)
    made.store.put_overwrite(item.key, body)
    named = replace(item, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
    made.overwrite(replace(current, checkpoints=(named,)))
    made.finish()

    found = run_json("verify", made.uri, exit_code=1)

    assert len(found["problems"]) == 3


def test_retried_records_inside_an_older_checkpoint_are_fine(tmp_path: Path) -> None:
    """A record that was quarantined and then got a checkpoint of its own, within the range of another, is in order."""
    made = make_output(tmp_path, bad=(), is_finished=False)
    records = made.records[SHARD]
    current = transitions.first_claim(made.plan.shards[SHARD], generation=1, owner=OWNER, commit_id="a", now=NOW)
    current = replace(current, epoch=2)
    outer = put_checkpoint(made, current, [*records[:2], *records[3:]], number=1)
    inner = put_checkpoint(made, current, records[2:3], number=2)
    made.overwrite(
        replace(
            current,
            status=ShardStatus.COMPLETE,
            owner=None,
            records=len(records),
            done=((0, len(records)),),
            checkpoints=(outer, inner),
        )
    )

    found = run_json("verify", made.uri)

    assert found["records"] == 80


@pytest.mark.parametrize("kept", [MAX_ID_LENGTH, None], ids=["cut", "whole"])
def test_a_quarantined_record_with_a_long_id_is_in_order(tmp_path: Path, kept: int | None) -> None:
    """Its manifest keeps the beginning of the id; one written before ids were cut has all of it."""
    made = make_output(tmp_path, bad_suffix="_" + "x" * MAX_ID_LENGTH)
    record = next(item for item in made.records[SHARD] if item.problem)
    quarantine_with(id=record.id[:kept])(made)
    made.finish()
    assert len(record.id) > MAX_ID_LENGTH

    found = run_json("verify", made.uri)

    assert found["problems"] == []


def test_a_held_shard_is_not_requeued(tmp_path: Path) -> None:
    """A corrupt checkpoint of a shard that a worker holds is reported; the worker is not pushed aside."""
    made = make_output(tmp_path, stop_after={SHARD: 2}, is_finished=False)
    flip_byte(made)
    before = made.manifest(SHARD)

    found = run_json("verify", made.uri, "--requeue", exit_code=1)

    assert (found["held"], found["requeued"]) == ([SHARD], [])
    assert made.manifest(SHARD) == before
    assert "not requeued: shard 0 is held" in run("verify", made.uri, "--requeue").stdout


def test_an_index_that_does_not_hold_is_withdrawn(tmp_path: Path) -> None:
    """--requeue removes a wrong index and _SUCCESS, so that the next run can write them anew, and nothing else."""
    made = make_output(tmp_path)
    edit_index(records=1)(made)
    before = made.manifests()

    run_json("verify", made.uri, "--requeue", exit_code=1)

    assert {
        item.key for item in made.store.list("g0001/") if "/data/" not in item.key and "/shards/" not in item.key
    } == {"g0001/plan.json"}
    assert made.manifests() == before


def test_requeued_records_run_again_to_a_run_that_is_fine(tmp_path: Path) -> None:
    """After the requeued records are done again, at the next epoch, verify has nothing to say."""
    made = make_output(tmp_path)
    flip_byte(made)
    lost = chosen(made)
    run_json("verify", made.uri, "--requeue", exit_code=1)
    current = transitions.claimed(made.manifest(SHARD), owner=OWNER, commit_id="again", now=NOW)
    sound = [item for item in made.records[SHARD][lost.first : lost.next] if item.problem is None]
    again = put_checkpoint(made, current, sound, number=1)
    made.overwrite(transitions.committed(current, commit_id="done", checkpoint=again))
    made.finish()

    found = run_json("verify", made.uri)

    assert (found["ok"], found["unnamedObjects"]) == (True, 1)


def test_archived_runs_and_old_generations_are_not_requeued(tmp_path: Path) -> None:
    """--requeue refuses what must no longer change."""
    made = make_output(tmp_path)
    made.store.put_overwrite("run.json", run_record.to_json(replace(made.record, is_archived=True)))
    archived = run("verify", made.uri, "--requeue")
    made.store.put_overwrite("run.json", run_record.to_json(replace(made.record, generation=2)))
    old = run("verify", made.uri, "--requeue", "--generation", "1")

    assert (archived.exit_code, old.exit_code) == (64, 64)
    assert "archived" in archived.stderr
    assert "only the current generation, 2" in old.stderr


def test_the_list_for_people_names_object_place_and_remedy(tmp_path: Path) -> None:
    """Without --json every problem is a line, its remedy the next; control characters of an id stay harmless."""
    made = make_output(tmp_path)
    content_with(lambda checkpoint: checkpoint["sequence_ids"].__setitem__(1, "a\x1b[2J"))(made)

    result = run("verify", made.uri)

    first, second, *_, last = result.stdout.splitlines()
    assert result.exit_code == 1
    assert first.startswith(f"{chosen(made).key}, row 1: record 6 is 'a")
    assert "\x1b" not in result.stdout
    assert "inferencerun verify OUTPUT_URI --requeue" in second
    assert last.startswith("OFF: 1 problem(s)")


def test_a_failed_shard_is_verified_for_what_it_has(tmp_path: Path) -> None:
    """Records that a failed shard never reached are its failure, not a problem of the output."""
    made = make_output(tmp_path, is_finished=False)
    write_shard_failed(made)
    made.finish()

    found = run_json("verify", made.uri)

    assert found["records"] == sum(count(item.done) for item in made.manifests()) < 78


def write_shard_failed(made: Made) -> None:
    """Shard 1 with its first checkpoint only, failed."""
    current = made.manifest(1)
    kept = current.checkpoints[:1]
    failed = replace(
        current,
        status=ShardStatus.FAILED,
        records=None,
        checkpoints=kept,
        done=((kept[0].first, kept[0].next),),
        failure=manifest.Failure(failure_class=FailureClass.TRANSIENT, detail="budget spent"),
    )
    made.overwrite(failed)
