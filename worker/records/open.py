"""From a range of an object to its records, whatever its format and compression.

Streaming: memory is bounded by a few requests and the longest record, whatever the size of the object.

A record belongs to the range in which it starts: a range begins at the first record that starts in it and is read past
its end to finish its last one. So whether a record starts at the very first byte depends on the byte before, and the
same object cut anywhere gives the same records with the same offsets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from contract.errors import InvalidInput
from contract.plan import Compression, InputFormat
from worker.records import fasta, lines
from worker.records.bgzf import align, bgzf_text, stored_offset, virtual_offset
from worker.records.jsonl import JsonLine
from worker.records.record import ByteSource, Record
from worker.records.split import raw_records
from worker.records.text import READ_BYTES, Chunk, Text, from_offset, gzip_text, plain_text

_HEAD_BYTES = 64 << 10
"""Looked at of every object, by every range of it: a wrong format is refused by all ranges alike."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BARE_RETURN = re.compile(rb"\r[^\r\n]")
_OTHER_FORMATS = (
    (re.compile(rb"\x1f\x8b"), "this looks like gzip: name it .gz (.bgz for block gzip), or decompress it"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "this looks like zstd: decompress it, or compress it with gzip or bgzip"),
    (re.compile(rb"\xfd7zXZ\0"), "this looks like xz: decompress it, or compress it with gzip or bgzip"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "this looks like bzip2: decompress it, or compress it with gzip or bgzip"),
    (re.compile(rb"PK\x03\x04"), "this looks like a zip archive: unpack it"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "this looks like UTF-16: convert it to UTF-8, for example with 'iconv'"),
)

Parse = Callable[[bytes, int], tuple[str, Any, str | None] | None]


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where and how the reading of a range begins."""

    text: Text
    before: bytes
    is_start: bool


def read_records(
    source: ByteSource,
    *,
    fmt: InputFormat,
    compression: Compression,
    start: int,
    end: int,
    first_ordinal: int = 0,
    resume_offset: int | None = None,
    id_field: str = "id",
    value_field: str | None = "sequence",
    read_bytes: int = READ_BYTES,
) -> Iterator[Record]:
    """The records that start in stored bytes [start, end) of the object, in order.

    Args:
        source: the object.
        fmt: how its text is laid out.
        compression: how it is stored; gzip has one range, the whole object.
        start: first stored byte of the range.
        end: stored byte after it.
        first_ordinal: number of the first record that is yielded.
        resume_offset: Record.next_offset of an earlier read: begin there. In gzip what lies before is inflated again.
        id_field: JSON lines: see WorkerSettings.
        value_field: JSON lines: see WorkerSettings.
        read_bytes: per request to the store.

    Raises:
        InvalidInput: damaged, truncated, or not of this format or compression; after all complete records before it.
        StoreError: the source's.
    """
    lead, parse = _format(fmt, id_field, value_field)
    if resume_offset is None:
        entry = _enter(source, fmt, compression, start, end, read_bytes)
    else:
        entry = _reenter(source, compression, resume_offset, end, read_bytes)
    ordinal = first_ordinal
    num_range_bytes = end - start
    for offset, next_offset, stored_end, body in raw_records(
        entry.text, uri=source.uri, lead=lead, before=entry.before, is_start=entry.is_start
    ):
        parsed = parse(body, offset)
        if parsed is not None:
            yield Record(ordinal, offset, next_offset, min(stored_end - start, num_range_bytes), *parsed)
            ordinal += 1


def _format(fmt: InputFormat, id_field: str, value_field: str | None) -> tuple[bytes, Parse]:
    match fmt:
        case InputFormat.FASTA:
            return fasta.LEAD, fasta.parse
        case InputFormat.LINES:
            return lines.LEAD, lines.parse
        case InputFormat.JSONL:
            return lines.LEAD, JsonLine(id_field, value_field).parse


def _enter(
    source: ByteSource, fmt: InputFormat, compression: Compression, start: int, end: int, read_bytes: int
) -> _Entry:
    """Begin at the first record that starts in the range."""
    text_start = _checked_start(source, fmt, compression, min(read_bytes, _HEAD_BYTES))
    match compression:
        case Compression.NONE:
            first_stored = first = start
            before = source.read(start - 1, start) if start else b""
        case Compression.GZIP:
            if start != 0:
                raise ValueError(f"{source.uri}: gzip has one range, it cannot be entered at {start}")
            first_stored, first, before = 0, 0, b""
        case Compression.BGZF:
            first_stored, before = align(source, start)
            first = virtual_offset(first_stored)
    text = _text(source, compression, first_stored, end, read_bytes)
    if first <= text_start:
        return _Entry(from_offset(text, text_start), b"", is_start=True)
    return _Entry(text, before, is_start=False)


def _reenter(source: ByteSource, compression: Compression, offset: int, end: int, read_bytes: int) -> _Entry:
    """Begin at the record at `offset`."""
    match compression:
        case Compression.NONE:
            first_stored = offset
        case Compression.GZIP:
            first_stored = 0
        case Compression.BGZF:
            first_stored = stored_offset(offset)
    text = _text(source, compression, first_stored, end, read_bytes)
    return _Entry(from_offset(text, offset), b"", is_start=True)


def _text(source: ByteSource, compression: Compression, first_stored: int, end: int, read_bytes: int) -> Text:
    match compression:
        case Compression.NONE:
            return plain_text(source, first_stored, end, read_bytes)
        case Compression.GZIP:
            return gzip_text(source, read_bytes)
        case Compression.BGZF:
            return bgzf_text(source, first_stored, end, read_bytes)


def _checked_start(source: ByteSource, fmt: InputFormat, compression: Compression, read_bytes: int) -> int:
    """Offset of the first byte of the text, after a byte order mark; raises InvalidInput when the text is not `fmt`."""
    head = b""
    head_offsets: list[int] = []  # of the head's first bytes, which need not be consecutive in BGZF
    for item in _text(source, compression, 0, source.size, read_bytes):
        if not isinstance(item, Chunk):
            head_offsets.append(item.offset)
            break
        missing = len(_BYTE_ORDER_MARK) + 1 - len(head_offsets)
        head_offsets.extend(range(item.offset, item.offset + min(missing, len(item.data))))
        head += item.data
        if len(head) >= _HEAD_BYTES:
            break
    has_mark = head.startswith(_BYTE_ORDER_MARK)
    problem = _wrong_start(head.removeprefix(_BYTE_ORDER_MARK), fmt)
    if problem is not None:
        raise InvalidInput(f"{source.uri}: at offset {head_offsets[0]}: {problem}")
    return head_offsets[len(_BYTE_ORDER_MARK) if has_mark else 0]


def _wrong_start(head: bytes, fmt: InputFormat) -> str | None:
    """Why the text that starts with `head` cannot be read, with the remedy. Pure."""
    for magic, problem in _OTHER_FORMATS:
        if magic.match(head):
            return problem
    problem_of_fasta = fasta.wrong_start(head) if fmt is InputFormat.FASTA else None
    if problem_of_fasta is None and b"\n" not in head and _BARE_RETURN.search(head):
        return "lines end with a carriage return alone (old Mac): convert them, for example with tr '\\r' '\\n'"
    return problem_of_fasta
