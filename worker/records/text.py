"""The decompressed text of an object as a stream of chunks that know where they come from; plain and gzip.

A stream never ends by surprise: its last item is an `End`, which says where the text ends and whether it was damaged
there. So whoever cuts records out of it can hand out all complete ones before the damage is raised.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from contract.errors import InvalidInput
from worker.records.record import ByteSource

READ_BYTES = 4 << 20
"""Per request to the store: large enough to hide its latency, small beside the memory of a worker."""

_FIRST_BYTES_BEYOND = 64 << 10
"""First request past the end of a range, for the rest of its last record; each further one is four times as large."""
_FEED_BYTES = 64 << 10
"""Compressed bytes per call of the inflater."""
_MAX_INFLATED_BYTES = 4 << 20
"""Decompressed bytes per chunk, so that a bomb cannot fill the memory."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive bytes of the text, never none."""

    data: bytes
    offset: int
    """Of `data[0]`, in the units of Record.offset; `data[i]` is at `offset + i`."""
    stored_start: int
    stored_end: int
    """The stored bytes this chunk was made from."""
    is_owned: bool
    """Whether a record that starts in it belongs to the range."""

    def stored_at(self, position: int) -> int:
        """Stored bytes consumed once `data[:position]` is; linear within the chunk. Pure."""
        return self.stored_start + (self.stored_end - self.stored_start) * position // len(self.data)


@dataclass(frozen=True, slots=True)
class End:
    """The last item of a stream."""

    offset: int
    """Of the byte after the text, in the units of Record.offset."""
    stored_end: int
    damage: InvalidInput | None = None
    """Why the text cannot be read further. None = it is whole."""


Text = Iterator[Chunk | End]


def read_ahead(source: ByteSource, start: int, end: int, read_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(position, stored bytes) from `start` to the end of the object; no piece crosses `end`."""
    at = start
    while at < end:
        stop = min(at + read_bytes, end)
        yield at, source.read(at, stop)
        at = stop
    step = min(_FIRST_BYTES_BEYOND, read_bytes)
    while at < source.size:
        stop = min(at + step, source.size)
        yield at, source.read(at, stop)
        at = stop
        step = min(4 * step, read_bytes)


def plain_text(source: ByteSource, start: int, end: int, read_bytes: int) -> Text:
    """The text of an uncompressed object from byte `start` on; chunks before `end` are owned."""
    for at, data in read_ahead(source, start, end, read_bytes):
        yield Chunk(data, at, at, at + len(data), at < end)
    yield End(source.size, source.size)


def gzip_text(source: ByteSource, read_bytes: int) -> Text:
    """The text of a gzip object of one or more members, from its start. Zero bytes may pad the end, as on tapes."""
    offset = 0
    inflater = None
    for base, piece in read_ahead(source, 0, source.size, read_bytes):
        view = memoryview(piece)
        at = 0
        while at < len(piece):
            if inflater is None:
                if base + at > 0 and piece[at] == 0:
                    at += 1
                    continue
                inflater = zlib.decompressobj(wbits=31)
            step = view[at : at + _FEED_BYTES]
            saved = inflater.copy()
            try:
                data = inflater.decompress(step, _MAX_INFLATED_BYTES)
            except zlib.error as error:
                data, num_good = _salvaged(saved, step)
                bad = base + at + num_good
                if data:
                    yield Chunk(data, offset, base + at, bad, is_owned=True)
                yield End(offset + len(data), bad, _gzip_damage(source, bad, error))
                return
            consumed = len(step) - len(inflater.unconsumed_tail or inflater.unused_data)
            if data:
                yield Chunk(data, offset, base + at, base + at + consumed, is_owned=True)
            offset += len(data)
            at += consumed
            if inflater.eof:
                inflater = None
    damage = None
    if inflater is not None:
        damage = InvalidInput(
            f"{source.uri}: truncated gzip: the object ends inside of a member, at compressed offset {source.size}; "
            "make it anew and upload it again"
        )
    yield End(offset, source.size, damage)


def _salvaged(inflater: zlib._Decompress, step: memoryview) -> tuple[bytes, int]:
    """What can be had of a piece that does not inflate, and how many of its bytes gave it: zlib drops both."""
    data = bytearray()
    for at in range(len(step)):
        try:
            data += inflater.decompress(step[at : at + 1])
        except zlib.error:
            return bytes(data), at
    raise AssertionError("a piece that failed inflates byte by byte")


def _gzip_damage(source: ByteSource, at: int, error: zlib.error) -> InvalidInput:
    if at < 2:
        return InvalidInput(f"{source.uri}: this is not gzip: name it without .gz, or compress it")
    return InvalidInput(
        f"{source.uri}: damaged gzip at compressed offset {at} ({error}); check it with 'gzip -t' and upload it again"
    )


def from_offset(text: Iterable[Chunk | End], offset: int) -> Text:
    """The stream without what lies before `offset`."""
    for item in text:
        if isinstance(item, Chunk) and item.offset < offset:
            cut = offset - item.offset
            if cut < len(item.data):
                yield Chunk(item.data[cut:], offset, item.stored_at(cut), item.stored_end, item.is_owned)
        else:
            yield item
