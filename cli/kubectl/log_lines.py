"""Log lines of workers, from JSON to something to read. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cli.texts import printable

_SHOWN_APART = frozenset({"time", "level", "message", "traceback"})
_ALIKE = frozenset({"run", "generation", "pod", "node", "worker", "uid"})
"""What all lines of one worker say, or what its slot says."""


def readable(line: str) -> str:
    """`12:00:01 warning shard claimed  shard=3 epoch=2`; a line that is not the worker's JSON stays as it is."""
    try:
        fields = json.loads(line)
    except ValueError:
        return printable(line)
    if not isinstance(fields, dict) or "message" not in fields:
        return printable(line)
    level = str(fields.get("level", "info"))
    text = f"{_clock(fields)} {level:<7} {printable(fields['message'])}"
    extras = " ".join(
        f"{name}={_value(value)}" for name, value in fields.items() if name not in _SHOWN_APART and name not in _ALIKE
    )
    lines = [f"{text}  {extras}" if extras else text]
    lines += [f"    {printable(item)}" for item in str(fields.get("traceback") or "").splitlines()]
    return "\n".join(lines)


def _clock(fields: Mapping[str, Any]) -> str:
    """Time of day of an ISO stamp; the day is that of the run's status."""
    return printable(str(fields.get("time", "")).partition("T")[2][:8] or "--:--:--")


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else printable(text)
