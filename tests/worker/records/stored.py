"""Objects for the reader tests: compressing text, a source in memory, and readers so naive that they are right."""

from __future__ import annotations

import gzip
import itertools
import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from contract.plan import Compression, InputFormat
from worker.records.open import read_records
from worker.records.record import Record

URI = "s3://bucket/in/object"
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


@dataclass
class MemorySource:
    """A ByteSource over bytes that counts what is asked of it."""

    stored: bytes
    uri: str = URI
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Stored bytes."""
        return len(self.stored)

    def read(self, start: int, end: int) -> bytes:
        """See ByteSource."""
        assert 0 <= start < min(end, self.size), f"useless read [{start}, {end}) of {self.size} bytes"
        self.reads.append((start, min(end, self.size)))
        return self.stored[start:end]


def block(text: bytes, *, level: int = 6, extra: bytes = b"") -> bytes:
    """One BGZF block; `extra` is another extra field that stands before BC."""
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = deflate.compress(text) + deflate.flush()
    extra_bytes = len(extra) + 6
    size = 12 + extra_bytes + len(body) + 8
    header = struct.pack("<4BI2BH", 0x1F, 0x8B, 8, 4, 0, 0, 0xFF, extra_bytes) + extra
    return header + b"BC" + struct.pack("<HH", 2, size - 1) + body + struct.pack("<II", zlib.crc32(text), len(text))


def bgzf(text: bytes, sizes: Iterable[int] = (), *, level: int = 6, ends: bool = True) -> bytes:
    """`text` in blocks of the given sizes (0 = an empty block), the rest in blocks of 60,000 bytes, and an end block."""
    blocks, at = [], 0
    for size in sizes:
        blocks.append(block(text[at : at + size], level=level))
        at += size
    while at < len(text):
        blocks.append(block(text[at : at + 60_000], level=level))
        at += 60_000
    return b"".join(blocks) + (BGZF_END if ends else b"")


def stored(text: bytes, compression: Compression, *, sizes: Iterable[int] = (), num_members: int = 1) -> bytes:
    """`text` as it lies in the store."""
    match compression:
        case Compression.NONE:
            return text
        case Compression.GZIP:
            cuts = [len(text) * number // num_members for number in range(num_members + 1)]
            return b"".join(gzip.compress(text[a:b]) for a, b in itertools.pairwise(cuts))
        case Compression.BGZF:
            return bgzf(text, sizes)


def read(  # noqa: D103
    text_or_source: bytes | MemorySource,
    fmt: InputFormat = InputFormat.FASTA,
    compression: Compression = Compression.NONE,
    *,
    start: int = 0,
    end: int | None = None,
    **options: object,
) -> list[Record]:
    source = MemorySource(text_or_source) if isinstance(text_or_source, bytes) else text_or_source
    end = source.size if end is None else end
    return list(read_records(source, fmt=fmt, compression=compression, start=start, end=end, **options))


def expected(text: bytes, fmt: InputFormat) -> list[tuple[int, str, object]]:
    """(offset in the text, id, value) of every record, one line at a time; good for records without a problem."""
    found: list[tuple[int, str, object]] = []
    at = 3 if text.startswith(b"\xef\xbb\xbf") else 0
    for line in text[at:].split(b"\n"):
        content = line.decode().removesuffix("\r")
        if fmt is InputFormat.FASTA and content.startswith(">"):
            found.append((at, (content[1:].split() or [str(at)])[0], ""))
        elif fmt is InputFormat.FASTA and content.strip():
            offset, name, sequence = found[-1]
            found[-1] = (offset, name, f"{sequence}{''.join(content.split())}")
        elif fmt is InputFormat.LINES and content.strip():
            found.append((at, str(at), content))
        elif fmt is InputFormat.JSONL and content.strip():
            value = json.loads(content)
            found.append((at, value.get("id", str(at)), value["sequence"]))
        at += len(line) + 1
    return found
