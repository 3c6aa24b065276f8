"""Plain lines."""

from __future__ import annotations

import pytest

from contract.errors import InvalidInput
from contract.plan import InputFormat
from tests.worker.records.stored import read


def test_each_line_is_a_record_without_its_line_end() -> None:
    """Blanks inside and around the text are the user's; CR LF is not."""
    records = read(b" a b \r\nc\n\n \t\nd", InputFormat.LINES)

    assert [(record.ordinal, record.offset, record.id, record.value) for record in records] == [
        (0, 0, "0", " a b "),
        (1, 7, "7", "c"),
        (2, 13, "13", "d"),
    ]


def test_a_line_that_is_no_utf8_is_reported() -> None:
    """And the lines around it are read."""
    records = read("é\n".encode() + b"ab\xff\nc\n", InputFormat.LINES)

    assert [(record.value, record.problem) for record in records] == [
        ("é", None),
        (None, "not UTF-8: byte 0xFF at position 3 of the line"),
        ("c", None),
    ]


@pytest.mark.parametrize("fmt", [InputFormat.LINES, InputFormat.JSONL])
def test_old_mac_line_ends_are_refused(fmt: InputFormat) -> None:
    """Otherwise the whole object would be one record."""
    with pytest.raises(InvalidInput, match=r"carriage return alone .* tr "):
        read(b"1\r2\r3\r", fmt)


def test_a_line_may_begin_like_bzip2() -> None:
    """Only the whole magic counts."""
    (record,) = read(b"BZh9 is a word\n", InputFormat.LINES)

    assert record.value == "BZh9 is a word"
