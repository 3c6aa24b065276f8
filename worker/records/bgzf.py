"""Reading block gzip (BGZF) from any stored byte on.

An offset is a BGZF virtual offset: stored start of the block << 16 | byte within its text. The place just after a
block's last byte is named by the next block that has text (after the last one: size of the object << 16), so one place
has one name. Blocks without text, such as the end-of-file marker, name nothing.

Entering a file in the middle: `1f 8b 08 04` also occurs inside compressed bytes, so a candidate counts only when a
chain of headers leads on from it for a whole block's length. Bytes inside a block that look like blocks (BGZF stored in
BGZF) cannot: their chain is cut by the trailer of the block they are in. And a block that ends exactly where the first
one starts must exist, so a damaged block at the border is an error of this range and never a silent gap.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from contract.bgzf import MAGIC, MAX_BLOCK_BYTES, block_bytes
from contract.errors import InvalidInput
from worker.records.record import ByteSource
from worker.records.text import Chunk, End, Text, read_ahead

_REMEDY = "check it with 'bgzip -t' and upload it again; if it is plain gzip, name it .gz"


def virtual_offset(block: int, within: int = 0) -> int:
    """Name of byte `within` of the block that starts at stored byte `block`. Pure."""
    return block << 16 | within


def stored_offset(offset: int) -> int:
    """Stored start of the block that a virtual offset lies in. Pure."""
    return offset >> 16


def bgzf_text(source: ByteSource, first: int, end: int, read_bytes: int) -> Text:
    """The text from the block at stored byte `first` on; blocks that start before `end` are owned."""
    at = first
    for block in _blocks(source, first, end, read_bytes):
        try:
            data = _inflated(block)
        except zlib.error as error:
            yield End(virtual_offset(at), at, _damage(source, at, str(error)))
            return
        if data:
            yield Chunk(data, virtual_offset(at), at, at + len(block), at < end)
        at += len(block)
    damage = _damage(source, at, "no whole block starts here") if at < source.size else None
    yield End(virtual_offset(at), at, damage)


def align(source: ByteSource, start: int) -> tuple[int, bytes]:
    """(first block that starts at or after stored byte `start`, the byte of text before it).

    The block is the object's size when none starts there; the byte is empty at the start of the text.

    Raises:
        InvalidInput: no chain of blocks there.
    """
    first = _first_block(source, start)
    block = first
    while block > 0:
        block, data = _block_before(source, block)
        if data:
            return first, data[-1:]
    return first, b""


def _blocks(source: ByteSource, first: int, end: int, read_bytes: int) -> Iterator[bytes]:
    """Blocks in a row from stored byte `first` on, until none starts or the object ends, which may cut the last one."""
    buffer, base, at = b"", first, 0
    for _, piece in read_ahead(source, first, end, read_bytes):
        buffer = buffer[at:] + piece
        base, at = base + at, 0
        is_last = base + len(buffer) >= source.size
        # A whole block is certainly there while MAX_BLOCK_BYTES are; at the end of the object, what is there is all.
        while at < len(buffer) and (is_last or len(buffer) - at >= MAX_BLOCK_BYTES):
            size = block_bytes(buffer, at)
            if size is None:
                return
            yield buffer[at : at + size]
            at += size


def _first_block(source: ByteSource, start: int) -> int:
    if start == 0:
        return 0
    # The block that holds byte start - 1 ends within one block's length, and a chain is followed for another one.
    window = source.read(start, start + 4 * MAX_BLOCK_BYTES)
    is_last = start + len(window) >= source.size
    at = window.find(MAGIC)
    while 0 <= at < MAX_BLOCK_BYTES:
        if _is_chain(window, at, is_last=is_last):
            return start + at
        at = window.find(MAGIC, at + 1)
    return source.size


def _is_chain(window: bytes, first: int, *, is_last: bool) -> bool:
    """Whether headers lead on from `first` for a block's length, or to the very end of the object."""
    at = first
    while at - first < MAX_BLOCK_BYTES and not (is_last and at == len(window)):
        size = block_bytes(window, at)
        if size is None:
            return False
        at += size
    return True


def _block_before(source: ByteSource, block: int) -> tuple[int, bytes]:
    """(stored start, text) of the block that ends at stored byte `block`."""
    base = max(0, block - MAX_BLOCK_BYTES)
    window = source.read(base, block)
    at = window.rfind(MAGIC)
    while at >= 0:
        if block_bytes(window, at) == len(window) - at:
            try:
                return base + at, _inflated(window[at:])
            except zlib.error:  # the magic bytes inside of a block; the block itself is further ahead
                pass
        at = window.rfind(MAGIC, 0, at + len(MAGIC) - 1)
    raise _damage(source, block, "no whole block ends here")


def _inflated(block: bytes) -> bytes:
    """Text of one block, length and checksum verified; raises zlib.error."""
    inflater = zlib.decompressobj(wbits=31)
    data = inflater.decompress(block, MAX_BLOCK_BYTES + 1)
    if not inflater.eof or inflater.unused_data or len(data) > MAX_BLOCK_BYTES:
        raise zlib.error("the block's size does not fit its content")
    return data


def _damage(source: ByteSource, at: int, detail: str) -> InvalidInput:
    return InvalidInput(f"{source.uri}: damaged or truncated BGZF at compressed offset {at} ({detail}); {_REMEDY}")
