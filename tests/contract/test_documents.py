"""Stored documents: equal values are equal bytes, and damage or a newer writer never passes for data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.documents import canonical, decode, encode, reading_fields
from contract.errors import Corrupt, NewerFormat

scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
values = st.recursive(
    scalars | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
BODY = encode("Plan", 1, {"text": "né\n", "number": 12, "ratio": 0.25, "nested": {"a": [1, None, True]}})


@given(
    st.dictionaries(texts.filter(lambda name: name not in {"kind", "formatVersion", "checksum"}), values, max_size=5)
)
def test_round_trip(fields: dict[str, object]) -> None:
    """What is encoded is what is decoded, whatever JSON can hold."""
    decoded = decode("Plan", 1, encode("Plan", 1, fields), where="plan.json")

    assert decoded == {**fields, "kind": "Plan", "formatVersion": 1}


def test_equal_fields_are_equal_bytes() -> None:
    """The order in which fields were set does not show."""
    assert encode("Plan", 1, {"a": 1, "b": [2]}) == encode("Plan", 1, {"b": [2], "a": 1})
    assert canonical({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()


def test_every_flipped_bit_is_detected() -> None:
    """No single flipped bit anywhere yields other fields than those stored."""
    intact = decode("Plan", 1, BODY, where="plan.json")
    outcomes = []

    for position in range(len(BODY)):
        for bit in range(8):
            damaged = bytearray(BODY)
            damaged[position] ^= 1 << bit
            try:
                outcomes.append(decode("Plan", 1, bytes(damaged), where="plan.json") == intact)
            except (Corrupt, NewerFormat):
                outcomes.append(True)

    assert len(outcomes) == 8 * len(BODY)
    assert all(outcomes)


@pytest.mark.parametrize("length", range(0, len(BODY) - 1, 7))
def test_a_cut_document_is_corrupt(length: int) -> None:
    """A document cut anywhere is refused."""
    with pytest.raises(Corrupt, match=r"plan\.json"):
        decode("Plan", 1, BODY[:length], where="plan.json")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not a Plan document"),
        (encode("Index", 1, {}), "not a Plan document"),
        (encode("Plan", 0, {}), "formatVersion 0 is not a positive number"),
        (b'{"kind":"Plan","formatVersion":"1"}', "formatVersion '1' is not a positive number"),
        (b'{"kind":"Plan","formatVersion":1}', "checksum does not match"),
        (b'{"kind":"Plan","formatVersion":1,"x":NaN}', "checksum does not match"),
        (b'{"kind":"Plan","formatVersion":1,"x":"\\ud800"}', "checksum does not match"),
        (BODY.replace(b'"number":12', b'"number":13'), "checksum does not match"),
    ],
)
def test_what_is_no_intact_document_is_corrupt(body: bytes, message: str) -> None:
    """Anything but an intact document of the wanted kind is refused, naming the place and what to do."""
    with pytest.raises(Corrupt, match=message) as caught:
        decode("Plan", 1, body, where="g0001/plan.json")

    assert "g0001/plan.json" in str(caught.value)
    assert "--restart" in str(caught.value)


def test_a_corrupt_manifest_names_the_repair_command() -> None:
    """Only a shard manifest can be set back alone, so only its message says so."""
    with pytest.raises(Corrupt, match="inferencerun repair"):
        decode("ShardManifest", 1, b"", where="g0001/shards/00000.json")


def test_a_newer_format_is_refused() -> None:
    """A document of a later version is not guessed at: the message says to upgrade."""
    with pytest.raises(NewerFormat, match="format version 2 of Plan is newer than 1: upgrade"):
        decode("Plan", 1, encode("Plan", 2, {}), where="plan.json")


def test_an_older_format_is_migrated_step_by_step() -> None:
    """Each migration sees the version before its own."""
    migrations = {
        1: lambda fields: {**fields, "steps": [*fields["steps"], 1]},
        2: lambda fields: {**fields, "steps": [*fields["steps"], 2]},
    }

    fields = decode("Plan", 3, encode("Plan", 1, {"steps": []}), where="plan.json", migrations=migrations)

    assert fields["steps"] == [1, 2]


@pytest.mark.parametrize("migrations", [None, {2: dict}])
def test_an_older_format_without_a_migration_is_corrupt(migrations: dict[int, type[dict]] | None) -> None:
    """A gap in the migrations is an error, not a guess."""
    with pytest.raises(Corrupt, match="no migration of Plan from format version 1"):
        decode("Plan", 3, encode("Plan", 1, {}), where="plan.json", migrations=migrations)


def test_nan_is_never_written() -> None:
    """NaN is no JSON: other readers could not read it back."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode("Plan", 1, {"seconds": float("nan")})


@pytest.mark.parametrize(
    "error", [KeyError("shard"), TypeError("x"), ValueError("x"), AttributeError("x"), IndexError("x")]
)
def test_a_missing_field_is_corrupt(error: Exception) -> None:
    """Whatever reading a field raises becomes Corrupt with the place and the cause."""
    with (
        pytest.raises(Corrupt, match=r"plan\.json: the Plan lacks or misspells a field") as caught,
        reading_fields("Plan", where="plan.json"),
    ):
        raise error

    assert caught.value.__cause__ is error
