"""FASTA as people write it: what is read, what is quarantined, what is refused."""

from __future__ import annotations

import pytest

from contract.errors import InvalidInput
from tests.worker.records.stored import URI, MemorySource, read


def values(text: bytes) -> list[object]:
    """What the model would get of each record."""
    return [record.value for record in read(text)]


@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        pytest.param(b">a\nMKV\nLAG\n", "MKVLAG", id="many lines"),
        pytest.param(b">a\r\nMKV\r\nLAG\r\n", "MKVLAG", id="CRLF"),
        pytest.param(b">a\nmkV*\n", "mkV*", id="lower case and stop kept"),
        pytest.param(b">a\nM-K.V*\n", "M-K.V*", id="gaps kept"),
        pytest.param(b">a\nMK V\tL\n\n \nAG\n\n", "MKVLAG", id="blanks and blank lines dropped"),
        pytest.param(b">a\nMKV", "MKV", id="no newline at the end"),
        pytest.param(b"\xef\xbb\xbf>a\nMKV\n", "MKV", id="byte order mark"),
        pytest.param(b"\n \r\n\n>a\nMKV\n", "MKV", id="blank lines first"),
        pytest.param(b">a\n" + b"M" * 8_000 + b"\n", "M" * 8_000, id="8,000 residues on one line"),
        pytest.param(b">a\n" + b"MKVLA\n" * 200_000, "MKVLA" * 200_000, id="1,000,000 residues on 200,000 lines"),
    ],
)
def test_sequences_are_read_as_meant(text: bytes, sequence: str) -> None:
    """One record, whole, without a problem."""
    (record,) = read(text)

    assert (record.id, record.value, record.problem) == ("a", sequence, None)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b"sp|P1|A_B some protein OS=x", "sp|P1|A_B"),
        (b" \tfirst second", "first"),
        (b"a>b >c", "a>b"),
        (b"", "0"),
        (b"  ", "0"),
        (b"caf\xe9 x", "caf\ufffd"),
        ("größe x".encode(), "größe"),
    ],
)
def test_the_id_is_the_first_word_of_the_header(header: bytes, name: str) -> None:
    """Also with '>' in it, in another encoding, or missing: then the offset names the record."""
    (record,) = read(b">" + header + b"\nMKV\n")

    assert (record.id, record.value) == (name, "MKV")


def test_duplicate_ids_are_two_records() -> None:
    """Identity is the offset, so an id may repeat."""
    records = read(b">a\nMK\n>a\nMK\n")

    assert [(record.id, record.offset) for record in records] == [("a", 0), ("a", 6)]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (b"MKVL1AG\n", "illegal letter '1' at position 5"),
        (b"MKV\nLA GX?\n", "illegal letter '?' at position 8"),
        (b"M\x00K\n", "illegal letter '\\x00' at position 2"),
        (b"MK\xc3\xa9\n", "illegal byte 0xC3 at position 3"),
        (b";old comment\nMKV\n", "illegal letter ';' at position 1"),
        (b"MK>V\n", "illegal letter '>' at position 3"),
        (b"", "empty sequence"),
        (b"\n \r\n", "empty sequence"),
    ],
)
def test_an_unusable_record_is_reported_and_the_others_are_read(lines: bytes, problem: str) -> None:
    """It keeps its place and id, so that quarantine can name it."""
    records = read(b">a\nMKV\n>bad one\n" + lines + b">c\nLAG\n")

    assert [(record.ordinal, record.id, record.value, record.problem) for record in records] == [
        (0, "a", "MKV", None),
        (1, "bad", None, problem),
        (2, "c", "LAG", None),
    ]


def test_a_header_at_the_very_end_is_an_empty_record() -> None:
    """A file cut after its last '>' still shows that something was there."""
    records = read(b">a\nMKV\n>")

    assert [(record.id, record.problem) for record in records] == [("a", None), ("7", "empty sequence")]


@pytest.mark.parametrize("text", [b"", b"\n\n", b" \r\n", b"\xef\xbb\xbf"])
def test_a_text_without_records_has_none(text: bytes) -> None:
    """Blank is not wrong."""
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (b"MKVLAG\n>a\nMKV\n", "FASTA starts with '>', but this text with 'MKVLAG"),
        (b'{"id": "a"}\n', "choose the right input.format"),
        (b"; comment\n>a\nMKV\n", "';' lines: remove them"),
        (b"@read1\nACGT\n+\nIIII\n", "FASTQ"),
        (b">a\rMKV\r>b\rLAG\r", "carriage return alone"),
        (b"\x1f\x8b\x08\x00rest", "this looks like gzip: name it .gz"),
        (b"\x28\xb5\x2f\xfdrest", "zstd"),
        (b"BZh91AY&SYrest", "bzip2"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\xfd7zXZ\x00rest", "xz"),
        (">a\nMKV\n".encode("utf-16"), "UTF-16"),
        (b"\x00\x01\x02", "FASTA starts with '>'"),
    ],
)
@pytest.mark.parametrize("is_first_range", [True, False])
def test_what_is_no_fasta_is_refused_by_every_range(text: bytes, detail: str, *, is_first_range: bool) -> None:
    """The message names object, offset and remedy; a later range refuses too, instead of reading garbage."""
    source = MemorySource(text)

    with pytest.raises(InvalidInput) as caught:
        read(source, start=0 if is_first_range else len(text) - 1)

    assert str(caught.value).startswith(f"{URI}: at offset 0: ")
    assert detail in str(caught.value)


def test_text_before_the_first_record_is_refused_wherever_it_stands() -> None:
    """Text after a screenful of blank lines is beyond the first look, yet never dropped in silence."""
    text = b"\n" * 100_000 + b"MKV\n>a\nMKV\n"

    with pytest.raises(InvalidInput, match=r"at offset .* a record should start with '>', but there is 'MKV'"):
        read(text, end=10, read_bytes=1000)


def test_resuming_where_no_record_starts_is_refused() -> None:
    """A wrong resume offset cannot read half a record."""
    with pytest.raises(InvalidInput, match="at offset 1 a record should start with '>'"):
        read(b">a\nMKV\n", resume_offset=1)
