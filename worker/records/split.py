"""Cutting records out of a stream of text, whatever its format.

A record starts where the format's lead (`>` for FASTA, nothing for lines) follows a newline or the start of the text,
and ends where the next one starts. It belongs to the range that owns the chunk it starts in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from contract.errors import InvalidInput
from worker.records.text import End, Text

MAX_RECORD_BYTES = 256 << 20
"""Longer than any protein or chromosome; what exceeds it is a file without line ends or of another format."""


class RawRecord(NamedTuple):
    """The bytes of a record, still to be parsed. A plain tuple: one is made per record."""

    offset: int
    next_offset: int
    stored_end: int
    """Stored bytes consumed up to and including it."""
    body: bytes
    """Without the lead; the last line may lack its newline."""


def raw_records(text: Text, *, uri: str, lead: bytes, before: bytes, is_start: bool) -> Iterator[RawRecord]:
    """The records that start in owned chunks.

    Args:
        text: the stream.
        uri: the object's, for messages.
        lead: what begins a record at the start of a line; at most one byte, so that no chunk border can split it.
        before: the byte of text before the stream; empty or a newline when a record may start with the stream.
        is_start: nothing but blanks may precede the first record (at the start of the text, and at a known record).

    Raises:
        InvalidInput: text before the first record, a record above MAX_RECORD_BYTES, or the stream's damage; in each
            case after the complete records before it.
    """
    separator = b"\n" + lead
    start: int | None = None
    pieces = [before or b"\n"]
    num_bytes = 0
    for chunk in text:
        if isinstance(chunk, End):
            # At damage a line with its newline is whole; a FASTA record never is, more lines could have followed.
            if start is not None and (chunk.damage is None or (not lead and pieces[-1].endswith(b"\n"))):
                yield RawRecord(start, chunk.offset, chunk.stored_end, b"".join(pieces))
            if chunk.damage is not None:
                raise chunk.damage
            return
        data, at = chunk.data, 0
        if pieces[-1].endswith(b"\n") and data.startswith(lead):
            if start is not None:
                yield RawRecord(start, chunk.offset, chunk.stored_start, b"".join(pieces))
            if not chunk.is_owned:
                return
            start, pieces, num_bytes = chunk.offset, [], 0
            data, at = data[len(lead) :], len(lead)
        bodies = data.split(separator)
        if not lead and len(bodies) > 1 and not bodies[-1]:
            # The newline is the chunk's last byte: the next record starts in the next chunk, which names its offset.
            bodies.pop()
            bodies[-1] += b"\n"
        if start is not None:
            pieces.append(bodies[0])
            num_bytes += len(bodies[0])
            if num_bytes > MAX_RECORD_BYTES:
                raise InvalidInput(
                    f"{uri}: the record at offset {start} is longer than {MAX_RECORD_BYTES >> 20} MiB: "
                    "is this the right format, and does it have line ends? Otherwise cut the record"
                )
        else:
            if is_start:
                if bodies[0].strip():
                    raise InvalidInput(_not_a_record(uri, chunk.offset, bodies[0], lead))
            elif not chunk.is_owned:
                return
            pieces = [bodies[0]]
        if len(bodies) == 1:
            continue
        at += len(bodies[0]) + 1
        if start is not None:
            yield RawRecord(start, chunk.offset + at, chunk.stored_at(at), b"".join(pieces))
        if not chunk.is_owned:
            return
        last = bodies.pop()
        del bodies[0]
        for body in bodies:
            next_at = at + len(lead) + len(body) + 1
            yield RawRecord(chunk.offset + at, chunk.offset + next_at, chunk.stored_at(next_at), body)
            at = next_at
        start, pieces, num_bytes = chunk.offset + at, [last], len(last)


def _not_a_record(uri: str, offset: int, found: bytes, lead: bytes) -> str:
    first = found.strip()[:24].decode("utf-8", "replace")
    return f"{uri}: at offset {offset} a record should start with {lead.decode()!r}, but there is {first!r}"
