"""JSON lines."""

from __future__ import annotations

import math
from typing import Any

import pytest

from contract.plan import InputFormat
from tests.worker.records.stored import read
from worker.records.record import Record


def records(text: str, **options: object) -> list[Record]:
    """Records of JSON lines."""
    return read(text.encode("utf-8", "surrogatepass"), InputFormat.JSONL, **options)


def test_members_are_picked_from_objects() -> None:
    """`id` and `sequence` unless told otherwise; blank lines are skipped."""
    found = records('{"id": "a", "sequence": "MKV"}\r\n\n{"sequence": "LAG", "x": 1}\n')

    assert [(record.ordinal, record.id, record.value) for record in found] == [(0, "a", "MKV"), (1, "33", "LAG")]


def test_other_members_can_be_named() -> None:
    """A value need not be text."""
    (record,) = records('{"name": "a", "xs": [1, 2.5, null]}', id_field="name", value_field="xs")

    assert (record.id, record.value) == ("a", [1, 2.5, None])


def test_without_a_value_field_the_model_gets_the_whole_value() -> None:
    """Any JSON value then is a record."""
    found = records('{"id": "a"}\n[1]\n"x"\nNaN\n', value_field=None)

    assert [(record.id, record.value) for record in found[:3]] == [("a", {"id": "a"}), ("12", [1]), ("16", "x")]
    assert math.isnan(found[3].value)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ('"a b"', "a b"),
        ("7", "7"),
        ("1.5", "1.5"),
        ("null", "0"),
        ("true", "0"),
        ("[1]", "0"),
        (r'"a\ud800"', "a?"),
    ],
)
def test_an_id_is_text_or_a_number_else_the_offset(given: str, name: str) -> None:
    """And it can always be written as UTF-8."""
    (record,) = records(f'{{"id": {given}, "sequence": "M"}}')

    assert record.id == name


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"sequence": "MK', "not JSON: "),
        ("{'sequence': 'MK'}", "not JSON: "),
        ("[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        ('{"sequence": ' + "1" * 5000 + "}", "not JSON: Exceeds the limit"),
        ('["MKV"]', "not a JSON object, so it has no member 'sequence'"),
        ('{"id": "b"}', "no member 'sequence', or it is null"),
        ('{"sequence": null}', "no member 'sequence', or it is null"),
        (r'{"sequence": "M\ud800"}', "member 'sequence' holds half of a surrogate pair"),
        ("\ud800", "not UTF-8: byte 0xED at position 1 of the line"),
    ],
)
def test_an_unusable_line_is_reported_and_the_others_are_read(line: str, problem: str) -> None:
    """Nothing a line can hold stops the reader."""
    found = records(f'{{"sequence": "A"}}\n{line}\n{{"sequence": "C"}}\n')

    assert [record.value for record in found] == ["A", None, "C"]
    assert (found[1].problem or "").startswith(problem)


def test_an_unusable_object_keeps_its_id() -> None:
    """Quarantine names it as the user does."""
    (record,) = records('{"id": "b", "sequence": null}')

    assert (record.id, record.value) == ("b", None)


def test_text_beyond_ascii_is_a_value() -> None:
    """Only half a surrogate pair is none."""
    value: Any = records('{"sequence": "größe \U0001f9ec"}')[0].value

    assert value == "größe \U0001f9ec"
