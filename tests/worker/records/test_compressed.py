"""gzip and block gzip: members, padding, damage, truncation, and entering a block gzip object in the middle."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.bgzf import MAGIC, block_bytes
from contract.errors import InvalidInput
from contract.plan import Compression, InputFormat
from tests.worker.records.stored import BGZF_END, URI, MemorySource, bgzf, block, read
from worker.records.open import read_records
from worker.records.record import Record

GZIP, BGZF = Compression.GZIP, Compression.BGZF


def fasta(num_records: int, seed: int = 0) -> bytes:
    """Random proteins: they compress badly, so that compressed offsets spread over the whole object."""
    draw = random.Random(seed)
    return b"".join(
        b">r%d\n%s\n" % (number, "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=draw.randrange(20, 400))).encode())
        for number in range(num_records)
    )


def collected(stored: bytes, compression: Compression, fmt: InputFormat, **bounds: int) -> tuple[list[Record], str]:
    """(records before the error, its message or nothing)."""
    source = MemorySource(stored)
    found: list[Record] = []
    try:
        for record in read_records(
            source, fmt=fmt, compression=compression, **{"start": 0, "end": source.size, **bounds}
        ):
            found.append(record)  # noqa: PERF402  (what came before the error must be kept)
    except InvalidInput as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("padding", [b"", b"\0" * 700])
def test_gzip_members_follow_one_another(padding: bytes) -> None:
    """Zero bytes after a member, as tapes and block devices leave, are no damage."""
    stored = gzip.compress(b">a\nMK") + gzip.compress(b"") + padding + gzip.compress(b"V\n>b\nL\n") + padding

    records = read(stored, InputFormat.FASTA, GZIP)

    assert [(record.id, record.value, record.offset) for record in records] == [("a", "MKV", 0), ("b", "L", 7)]
    assert records[-1].position == len(stored)


def test_block_gzip_is_also_gzip() -> None:
    """A small .gz is never looked into, and need not be."""
    text = fasta(50)

    assert [r.value for r in read(bgzf(text, [100] * 9), InputFormat.FASTA, GZIP)] == [r.value for r in read(text)]


@pytest.mark.parametrize(("fmt", "separator"), [(InputFormat.LINES, b"\n"), (InputFormat.FASTA, b"\n>")])
@settings(max_examples=40, deadline=None)
@given(place=st.integers(20, 10_000))
def test_truncated_gzip_fails_after_the_complete_records(fmt: InputFormat, separator: bytes, place: int) -> None:
    """All lines whose newline was seen; a FASTA record only when the next one was, more lines could have followed."""
    text = fasta(60)
    whole = gzip.compress(text)
    stored = whole[: place % (len(whole) - 20) + 18]
    readable = zlib.decompressobj(31).decompress(stored)
    before = [record.value for record in read(readable[: readable.rfind(separator) + 1], fmt)]

    records, message = collected(stored, GZIP, fmt)

    assert [record.value for record in records] == before
    assert message.startswith(f"{URI}: truncated gzip: ")
    assert f"compressed offset {len(stored)}" in message


def test_damaged_gzip_names_the_place_after_the_complete_records() -> None:
    """The records of the bytes before the damage are handed out, to the byte."""
    text = fasta(300)
    good = gzip.compress(text)
    stored = good + gzip.compress(text)[:10] + b"\xff" * 50

    records, message = collected(stored, GZIP, InputFormat.LINES)

    assert [record.value for record in records] == text.decode().split("\n")[:-1]
    assert message.startswith(f"{URI}: damaged gzip at compressed offset {len(good) + 10} (")
    assert "gzip -t" in message


def test_a_wrong_checksum_is_damage() -> None:
    """Flipped bits that still inflate are noticed at the member's end."""
    stored = bytearray(gzip.compress(b">a\nMKV\n>b\nLAG\n"))
    stored[-6] ^= 1

    records, message = collected(bytes(stored), GZIP, InputFormat.FASTA)

    assert [record.id for record in records] == ["a"]
    assert "incorrect data check" in message


@pytest.mark.parametrize(
    ("stored", "compression", "detail"),
    [
        (b">a\nMKV\n", GZIP, "this is not gzip: name it without .gz"),
        (b">a\nMKV\n", BGZF, "damaged or truncated BGZF at compressed offset 0"),
        (gzip.compress(b">a\nMKV\n", mtime=0), BGZF, "if it is plain gzip, name it .gz"),
        (gzip.compress(gzip.compress(b">a\nMKV\n", mtime=0), mtime=0), GZIP, "this looks like gzip"),
        (gzip.compress(b"MKV\n", mtime=0), GZIP, "FASTA starts with '>'"),
    ],
)
def test_a_wrong_name_is_refused(stored: bytes, compression: Compression, detail: str) -> None:
    """The message says what the object seems to be and how to name it."""
    records, message = collected(stored, compression, InputFormat.FASTA)

    assert records == []
    assert message.startswith(f"{URI}: ")
    assert detail in message


def test_gzip_cannot_be_entered_in_the_middle() -> None:
    """A plan that asks for it is our own mistake."""
    with pytest.raises(ValueError, match="one range"):
        read(gzip.compress(fasta(9)), InputFormat.FASTA, GZIP, start=5)


def test_a_gzip_bomb_is_read_in_small_chunks() -> None:
    """64 MiB of blanks from 64 KiB never lie in memory at once."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    stored = b"".join(deflate.compress(b" " * (1 << 20)) for _ in range(64)) + deflate.flush()
    tracemalloc.start()

    records = read(stored, InputFormat.FASTA, GZIP)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert records == []
    assert len(stored) < 1 << 17
    assert peak_bytes < 32 << 20


def test_virtual_offsets_name_block_and_byte() -> None:
    """And the place after a block's last byte is named by the next block with text, after the last one by the size."""
    first, second = block(b">a\nMKV\n"), block(b">b\nLAG\n>c\nA\n")
    stored = first + BGZF_END + second + BGZF_END
    at = len(first) + len(BGZF_END)

    records = read(stored, InputFormat.FASTA, BGZF)

    assert [record.offset for record in records] == [0, at << 16, at << 16 | 7]
    assert [record.next_offset for record in records] == [at << 16, at << 16 | 7, len(stored) << 16]


@pytest.mark.parametrize("level", [0, 6])
@pytest.mark.parametrize("ends", [True, False])
def test_full_size_blocks_are_found_from_any_byte(level: int, *, ends: bool) -> None:
    """Blocks of 60,000 bytes, stored or deflated, with or without the end block; cut at random and at every border."""
    text = fasta(1500)
    stored = bgzf(text, level=level, ends=ends)
    assert len(stored) > 3 * 60_000
    draw = random.Random(level)
    borders = [at for at in range(len(stored)) if stored.startswith(MAGIC, at)]
    cuts = [draw.randrange(1, len(stored)) for _ in range(12)] + [b + d for b in borders for d in (-1, 0, 1)]
    whole = [record.offset for record in read(stored, InputFormat.FASTA, BGZF)]

    assert len(whole) == 1500
    for place in cuts:
        if 0 < place < len(stored):
            left = read(stored, InputFormat.FASTA, BGZF, end=place)
            right = read(stored, InputFormat.FASTA, BGZF, start=place)

            assert [record.offset for record in left + right] == whole


def test_blocks_inside_of_blocks_are_not_taken_for_blocks() -> None:
    """Lines that hold whole BGZF files, in stored blocks: every magic, size and checksum in them is right."""
    inner = b"".join(bgzf(b"inner %d" % number, [3, 0, 2]) for number in range(900)).replace(b"\n", b"\r")
    lines = [inner[at : at + 500] for at in range(0, len(inner), 500)]
    stored = bgzf(b"\n".join([b"a line", *lines]), [30_000] * 9, level=0)
    whole = [record.offset for record in read(stored, InputFormat.LINES, BGZF)]
    places = [at for at in range(len(stored)) if stored.startswith(MAGIC, at)]

    assert len(places) > 2000
    for place in places[1::97]:
        left = read(stored, InputFormat.LINES, BGZF, end=place)
        right = read(stored, InputFormat.LINES, BGZF, start=place)

        assert [record.offset for record in left + right] == whole


def test_other_extra_fields_are_stepped_over() -> None:
    """BC need not stand first."""
    stored = block(b">a\nMKV\n", extra=b"XY\x03\x00abc") + BGZF_END

    assert [record.id for record in read(stored, InputFormat.FASTA, BGZF)] == ["a"]


@pytest.mark.parametrize(
    "header",
    [
        b"",
        BGZF_END[:11],
        BGZF_END[:17],
        gzip.compress(b"x", mtime=0),
        BGZF_END[:10] + b"\0\0" + BGZF_END[12:],
        BGZF_END[:12] + b"XC" + BGZF_END[14:],
        BGZF_END[:16] + b"\x05\x00" + BGZF_END[18:],
    ],
)
def test_what_is_no_block_header_has_no_size(header: bytes) -> None:
    """Too short, no extra field, no BC, or a size smaller than the header."""
    assert block_bytes(BGZF_END) == len(BGZF_END)
    assert block_bytes(header) is None


@pytest.mark.parametrize(("fmt", "separator"), [(InputFormat.LINES, b"\n"), (InputFormat.FASTA, b"\n>")])
def test_a_damaged_block_is_named_after_the_complete_records(fmt: InputFormat, separator: bytes) -> None:
    """Compressed offset of the block, and a command that shows the damage."""
    text = fasta(60)
    stored = bytearray(bgzf(text, [1000] * 8))
    bad = [at for at in range(len(stored)) if stored.startswith(MAGIC, at)][5]
    stored[bad + 30] ^= 0x55
    before = [record.value for record in read(text[: text.rfind(separator, 0, 5000) + 1], fmt)]

    records, message = collected(bytes(stored), BGZF, fmt)

    assert [record.value for record in records] == before
    assert message.startswith(f"{URI}: damaged or truncated BGZF at compressed offset {bad} (")
    assert "bgzip -t" in message


@pytest.mark.parametrize("cut_off", [1, 20, 27, 28, 29, 60])
def test_truncated_block_gzip_is_an_error_of_the_last_range(cut_off: int) -> None:
    """Whole missing blocks at the end cannot be seen; a part of one is."""
    stored = bgzf(fasta(60), [1000] * 8)[:-cut_off]

    for start in (0, len(stored) - 40, len(stored) - 1):
        records, message = collected(stored, BGZF, InputFormat.FASTA, start=start)

        assert ("damaged or truncated BGZF" in message) == (cut_off != len(BGZF_END))
        assert len(records) == (60 if cut_off == len(BGZF_END) else 59) or start > 0 or cut_off > len(BGZF_END)


def test_a_damaged_block_is_never_a_silent_gap() -> None:
    """Wherever a header is destroyed and wherever the object is cut, the ranges report it or read every record."""
    text = fasta(25)
    clean = bgzf(text, [700] * 9)
    whole = [record.value for record in read(text)]
    borders = [at for at in range(len(clean)) if clean.startswith(MAGIC, at)]
    for bad in borders:
        stored = clean[:bad] + b"\0" + clean[bad + 1 :]
        for place in {max(1, min(len(clean) - 1, border + shift)) for border in borders for shift in (-1, 0, 1, 300)}:
            left, left_error = collected(stored, BGZF, InputFormat.FASTA, end=place)
            right, right_error = collected(stored, BGZF, InputFormat.FASTA, start=place)

            assert left_error or right_error or [record.value for record in left + right] == whole


def test_a_resume_offset_outside_of_all_blocks_is_refused() -> None:
    """A manifest of another object cannot make garbage of this one."""
    stored = bgzf(fasta(25), [700] * 9)

    with pytest.raises(InvalidInput, match="compressed offset 5 "):
        read(stored, InputFormat.FASTA, BGZF, resume_offset=5 << 16)
