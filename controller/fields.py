"""Reading a user's mapping field by field, so that all its mistakes come out in one message. Pure.

Each mistake is one line: path, value, what is expected. A wrong field reads as its default, so reading goes on.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

Choice = TypeVar("Choice", bound=StrEnum)

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGTP", start=1)
}

MAX_TEXT_LENGTH = 2048
"""Characters; an object key has at most 1,024 bytes. Bounds keep a resource within what etcd stores."""
MAX_TEXTS = 1000
"""Items of a list; a pattern or prefix stands for any number of objects."""


def parse_quantity(text: str) -> int | None:
    """Bytes in a Kubernetes quantity ("64Mi", "1.5G", "1024"); None when it is none, or no whole number."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    whole, _, fraction = match[1].partition(".")
    number, rest = divmod(int(whole + fraction) * _FACTORS[match[2] or ""], 10 ** len(fraction))
    return None if rest else number


class Section:
    """One mapping of the resource. Call a reader for each field it may have, then `close`."""

    def __init__(self, found: Any, path: str, problems: list[str]) -> None:
        """Args: `found` as given (None = absent), its `path` for messages, and where to collect the `problems`."""
        self.path = path
        self._problems = problems
        self._known: set[str] = set()
        self._found: Mapping[str, Any] = {}
        if isinstance(found, Mapping):
            self._found = found
        elif found is not None:
            self.wrong(None, found, "use a mapping of fields")

    def wrong(self, name: str | None, value: Any, remedy: str) -> None:
        """Note a mistake in field `name` (None = the section itself)."""
        where = self.path if name is None else f"{self.path}.{name}"
        found = "is missing" if value is None else f"{value!r} cannot be used"
        self._problems.append(f"{where}: {found}; {remedy}")

    def has(self, name: str) -> bool:
        """Whether the field is given and not null."""
        return self._found.get(name) is not None

    def section(self, name: str) -> Section:
        """A nested mapping; absent reads as empty."""
        return Section(self._take(name), f"{self.path}.{name}", self._problems)

    def integer(self, name: str, default: int, *, minimum: int = 1, maximum: int | None = None) -> int:
        """A whole number."""
        found = self.optional_integer(name, minimum=minimum, maximum=maximum)
        return default if found is None else found

    def optional_integer(
        self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int | None = None
    ) -> int | None:
        """A whole number or null; absent reads as `default`."""
        if name not in self._found:
            self._known.add(name)
            return default
        value = self._take(name)
        if value is None or (type(value) is int and minimum <= value <= (maximum if maximum is not None else value)):
            return value
        upper = "" if maximum is None else f" and at most {maximum}"
        self.wrong(name, value, f"use a whole number of at least {minimum}{upper}")
        return default

    def seconds(self, name: str, default: float, *, minimum: float | None = None) -> float:
        """A duration in seconds."""
        found = self.optional_seconds(name, minimum=minimum)
        return default if found is None else found

    def optional_seconds(self, name: str, *, minimum: float | None = None) -> float | None:
        """A duration in seconds or null, positive unless a `minimum` is given."""
        value = self._take(name)
        if value is None:
            return None
        if (
            type(value) in {int, float}
            and math.isfinite(value)
            and (value > 0 if minimum is None else value >= minimum)
        ):
            return float(value)
        self.wrong(name, value, "use a positive number of seconds" if minimum is None else f"use at least {minimum} s")
        return None

    def quantity(self, name: str, default: int, *, minimum: int = 1) -> int:
        """Bytes, as a number or a Kubernetes quantity."""
        value = self._take(name)
        if value is None:
            return default
        number = value if type(value) is int else parse_quantity(value) if isinstance(value, str) else None
        if number is not None and number >= minimum:
            return number
        self.wrong(name, value, f'use bytes as a quantity such as "64Mi" or "1.5G", at least {minimum}')
        return default

    def text(self, name: str, default: str | None = None) -> str:
        """A text of 1 to MAX_TEXT_LENGTH characters; without `default` it must be given."""
        value = self._take(name)
        if _is_text(value):
            return str(value)
        if isinstance(value, str) and value:
            self.wrong(name, f"{value[:40]}…", f"use at most {MAX_TEXT_LENGTH} characters")
        elif value is not None or default is None:
            self.wrong(name, value, "a text is required here" if default is None else "use a text")
        return default or ""

    def nullable_text(self, name: str, default: str) -> str | None:
        """A non-empty text or null; absent reads as `default`."""
        found = self.text(name, default)
        return found if self.has(name) or name not in self._found else None

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of 1 to MAX_TEXTS texts."""
        value = self._take(name)
        if isinstance(value, list | tuple) and 0 < len(value) <= MAX_TEXTS and all(_is_text(item) for item in value):
            return tuple(value)
        if isinstance(value, list | tuple) and len(value) > MAX_TEXTS:
            self.wrong(
                name, f"a list of {len(value)}", f"use at most {MAX_TEXTS} items; a pattern or prefix takes in many"
            )
        else:
            self.wrong(name, value, f"use a list of at least one text, of at most {MAX_TEXT_LENGTH} characters each")
        return ()

    def choice(self, name: str, default: Choice) -> Choice:
        """One of the values of an enum."""
        value = self._take(name)
        if value is None:
            return default
        kind = type(default)
        if isinstance(value, str) and value in set(kind):
            return kind(value)
        self.wrong(name, value, f"use one of {', '.join(kind)}{_nearest(value, kind)}")
        return default

    def optional_choice(self, name: str, kind: type[Choice]) -> Choice | None:
        """One of the values of an enum, or null."""
        found = self.choice(name, next(iter(kind)))
        return found if self.has(name) else None

    def boolean(self, name: str, *, default: bool) -> bool:
        """A yes or no."""
        value = self._take(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.wrong(name, value, "use true or false, without quotes")
        return default

    def mapping(self, name: str) -> dict[str, Any]:
        """A mapping that is passed on as it is."""
        value = self._take(name)
        if value is None or isinstance(value, Mapping):
            return dict(value or {})
        self.wrong(name, value, "use a mapping")
        return {}

    def close(self, *also_known: str) -> None:
        """Note every field that nobody has read, with the nearest known name."""
        known = self._known | set(also_known)
        for name in self._found:
            if name not in known:
                near = _nearest(str(name), known - set(self._found)) or f"; known here: {', '.join(sorted(known))}"
                self._problems.append(f"{self.path}.{name}: unknown field; remove it{near}")

    def _take(self, name: str) -> Any:
        self._known.add(name)
        return self._found.get(name)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT_LENGTH


def _nearest(value: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(value), [str(item) for item in known], n=1)
    return f"; did you mean {near[0]}?" if near else ""
