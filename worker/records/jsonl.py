"""JSON lines: each line that is not blank is a record, a JSON value.

The model gets the member `value_field` of an object, or the whole value when that is None. The id is the member
`id_field` when it is text or a number, else the offset.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from worker.records.lines import not_utf8


@dataclass(frozen=True, slots=True)
class JsonLine:
    """How the lines of one input are read."""

    id_field: str
    value_field: str | None

    def parse(self, body: bytes, offset: int) -> tuple[str, Any, str | None] | None:
        """(id, value, problem) of a line; None for a blank one. Pure."""
        if body.isspace() or not body:
            return None
        name = str(offset)
        try:
            value = json.loads(body.decode("utf-8"))
        except UnicodeDecodeError as error:
            return name, None, not_utf8(error)
        except (ValueError, RecursionError) as error:  # no JSON, an integer of thousands of digits, nested too deep
            return name, None, f"not JSON: {error}"
        if isinstance(value, dict):
            name = _name(value.get(self.id_field), name)
        if self.value_field is None:
            return name, value, None
        if not isinstance(value, dict):
            return name, None, f"not a JSON object, so it has no member {self.value_field!r}"
        if value.get(self.value_field) is None:
            return name, None, f"no member {self.value_field!r}, or it is null"
        member = value[self.value_field]
        if isinstance(member, str) and not _is_encodable(member):
            return name, None, f"member {self.value_field!r} holds half of a surrogate pair"
        return name, member, None


def _name(given: object, otherwise: str) -> str:
    if isinstance(given, str):
        # A lone surrogate is legal JSON but cannot be written to any manifest.
        return given.encode("utf-8", "replace").decode()
    if isinstance(given, int | float) and not isinstance(given, bool):
        return str(given)
    return otherwise


def _is_encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
