"""Block gzip (BGZF) headers: where a block ends, told from its first bytes. Pure.

A BGZF file is a series of gzip members ("blocks") of at most 64 KiB, each with its stored size in the BC field of its
header. So a reader can enter the file in the middle, which plain gzip does not allow.

Source: SAM/BAM format specification, section 4.1 (samtools.github.io/hts-specs/SAMv1.pdf).
"""

from __future__ import annotations

import struct

MAGIC = b"\x1f\x8b\x08\x04"
"""gzip, deflate, with an extra field: how every block begins."""
MAX_BLOCK_BYTES = 65536
"""Both stored and decompressed."""
MIN_HEADER_BYTES = 18
"""A header whose only extra field is BC, as all known writers make it."""

_FIXED_BYTES = 12 + 2 + 8
"""Of any block besides its extra field: fixed header, the shortest deflate stream, checksum and length."""


def block_bytes(data: bytes, at: int = 0) -> int | None:
    """Stored size of the block whose header begins at `data[at]`; None when no whole BGZF header is there. Pure."""
    if data[at : at + 4] != MAGIC or len(data) < at + 12:
        return None
    (extra_bytes,) = struct.unpack_from("<H", data, at + 10)
    field, extra_end = at + 12, at + 12 + extra_bytes
    while field + 4 <= min(extra_end, len(data)):
        (field_bytes,) = struct.unpack_from("<H", data, field + 2)
        if data[field : field + 2] == b"BC" and field_bytes == 2 and field + 6 <= min(extra_end, len(data)):
            size = int(struct.unpack_from("<H", data, field + 4)[0]) + 1
            return size if size >= extra_bytes + _FIXED_BYTES else None
        field += 4 + field_bytes
    return None
