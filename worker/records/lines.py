"""Plain lines: each line is a record and the model gets its text, without the line end. Blank lines are no records.

The id is the offset: a line has no other name.
"""

from __future__ import annotations

from typing import Any

LEAD = b""


def parse(body: bytes, offset: int) -> tuple[str, Any, str | None] | None:
    """(id, text, problem) of a line; None for a blank one. Pure."""
    if body.isspace() or not body:
        return None
    try:
        return str(offset), body.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8"), None
    except UnicodeDecodeError as error:
        return str(offset), None, not_utf8(error)


def not_utf8(error: UnicodeDecodeError) -> str:
    """The problem of a line that is no UTF-8. Pure."""
    return f"not UTF-8: byte 0x{error.object[error.start]:02X} at position {error.start + 1} of the line"
