"""run.json: it tells two computations apart, and says in words what differs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import pytest

from contract import documents, run_record
from contract.errors import Corrupt, NewerFormat
from contract.plan import InputFormat, InputObject
from contract.run_record import InputIdentity, ModelIdentity, differences, input_identity
from tests.contract import values

OBJECTS = values.plan().objects


def identity(objects: tuple[InputObject, ...]) -> InputIdentity:
    """Identity of `objects` read as FASTA."""
    return input_identity(objects, fmt=InputFormat.FASTA, id_field="id", value_field=None)


@pytest.mark.parametrize("max_length", [1022, None])
def test_round_trip(max_length: int | None) -> None:
    """Every field survives being stored."""
    original = values.run_record()
    original = replace(original, model=replace(original.model, max_length=max_length))

    assert run_record.from_json(run_record.to_json(original), where="run.json") == original


def test_records_of_older_versions_are_read() -> None:
    """One that lacks what a later version keeps says that it is not known."""
    original = replace(values.run_record(), input_uris=None, opened_for=None)
    fields = json.loads(run_record.to_json(original))
    del fields["openedFor"], fields["input"]["uris"], fields["checksum"]
    older = documents.encode(run_record.KIND, run_record.FORMAT_VERSION, fields)

    assert run_record.from_json(older, where="run.json") == original


def test_identity_does_not_depend_on_the_listing_order() -> None:
    """Two listings of the same objects are the same input."""
    assert identity(OBJECTS) == identity(OBJECTS[::-1])
    assert (identity(OBJECTS).num_objects, identity(OBJECTS).total_bytes) == (2, 1600)


@pytest.mark.parametrize("change", [{"uri": "s3://in/c"}, {"size": 901}, {"etag": '"e9"'}])
def test_identity_changes_with_any_object(change: dict[str, object]) -> None:
    """A renamed, resized or rewritten object is another input."""
    changed = (replace(OBJECTS[0], **change), OBJECTS[1])

    assert identity(changed).sha256 != identity(OBJECTS).sha256


def test_the_same_run_has_no_differences() -> None:
    """What changes during a run (generation, version, archive mark) does not make it another run."""
    record = values.run_record()

    assert differences(record, replace(record, generation=9, version=9, commit_id="x", history=("x",), uid="y")) == ()


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelIdentity)])
def test_each_part_of_the_model_identity_counts(field: str) -> None:
    """Another name, source, parameter, precision, type or length gives other rows, so it is another run."""
    record = values.run_record()
    other = replace(record, model=replace(record.model, **{field: "other"}))

    (message,) = differences(record, other)

    assert message.startswith(f"model.{field}: this spec has ")
    assert message.endswith("the output has other")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(InputIdentity)])
def test_each_part_of_the_input_identity_counts(field: str) -> None:
    """Another format, field, count, size or digest is another input."""
    record = values.run_record()
    other = replace(record, input=replace(record.input, **{field: "other"}))

    (message,) = differences(record, other)

    assert message.startswith(f"input.{field}: ")


def test_the_shard_size_counts() -> None:
    """Other shards are another plan."""
    record = values.run_record()

    assert differences(record, replace(record, shard_bytes=1)) == ("shardBytes: this spec has 500, the output has 1",)


def test_a_newer_record_is_refused() -> None:
    """A record of a later format is not guessed at."""
    with pytest.raises(NewerFormat):
        run_record.from_json(documents.encode(run_record.KIND, run_record.FORMAT_VERSION + 1, {}), where="run.json")


def test_a_record_of_another_shape_is_corrupt() -> None:
    """An intact document without the fields is Corrupt."""
    with pytest.raises(Corrupt, match=r"run\.json"):
        run_record.from_json(documents.encode(run_record.KIND, 1, {"input": {}, "model": {}}), where="run.json")
