"""FASTA: a header line that starts with `>`, then the sequence on any number of lines.

The id is the first word of the header, the offset when there is none. Blanks and line ends inside the sequence are
dropped; case, `*`, `-` and `.` are kept, what they mean is the model's business. Anything but these and the letters A-Z
makes the record unusable, and so does an empty sequence.
"""

from __future__ import annotations

import re
from string import ascii_letters
from typing import Any

LEAD = b">"

_ILLEGAL = re.compile(rb"[^A-Za-z*.-]")
_LEGAL = ascii_letters.encode() + b"*-."


def parse(body: bytes, offset: int) -> tuple[str, Any, str | None]:
    """(id, sequence, problem) of a record without its `>`. Pure."""
    header, _, lines = body.partition(b"\n")
    words = header.split(None, 1)
    name = words[0].decode("utf-8", "replace") if words else str(offset)
    sequence = b"".join(lines.split())
    if sequence.isalpha():  # most records; the second look is for the others
        return name, sequence.decode("ascii"), None
    if not sequence:
        return name, None, "empty sequence"
    if sequence.translate(None, _LEGAL):
        return name, None, _problem(sequence)
    return name, sequence.decode("ascii"), None


def wrong_start(head: bytes) -> str | None:
    """Why a text that starts with `head` is no FASTA, with the remedy; None = it may be. Pure."""
    first = head.lstrip()[:1]
    if first in {b"", b">"}:
        return None
    if first == b";":
        return "old FASTA with ';' lines: remove them, or make those that name a sequence start with '>'"
    if first == b"@":
        return "this looks like FASTQ: convert it, for example with 'seqtk seq -A'"
    found = head.lstrip()[:24].decode("utf-8", "replace")
    return f"FASTA starts with '>', but this text with {found!r}: choose the right input.format, or mend the object"


def _problem(sequence: bytes) -> str:
    match = _ILLEGAL.search(sequence)
    if match is None:
        raise AssertionError("no illegal letter after all")
    code = match[0][0]
    what = f"letter {chr(code)!r}" if code < 0x80 else f"byte 0x{code:02X}"
    return f"illegal {what} at position {match.start() + 1}"
