"""JSON-able fields of frozen dataclasses, and back. Pure.

For what the controller keeps beyond the manifests (status, memory). `retry_at` becomes `retryAt`, `eta_s` becomes
`etaSeconds`. Unknown names are ignored and absent ones take their default, so that a version may read what its
neighbour wrote.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from contract.errors import Corrupt
from contract.manifest import parse_stamp, stamp

T = TypeVar("T")


def to_fields(value: Any) -> Any:
    """`value` in terms of dict, list, str, int, float, bool and None."""
    if is_dataclass(value):
        return {_camel(item.name): to_fields(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple):
        return [to_fields(item) for item in value]
    return value


def from_fields(kind: type[T], found: Any, *, where: str) -> T:
    """The `kind` (a dataclass) that `to_fields` wrote.

    Raises:
        Corrupt: a value is not what it should be; the caller may start with an empty one.
    """
    if not isinstance(found, Mapping):
        raise Corrupt(f"{where}: {found!r} is not an object")
    hints, arguments = get_type_hints(kind), {}
    for item in fields(kind):  # type: ignore[arg-type]  # every caller passes a dataclass
        name = _camel(item.name)
        if name in found:
            arguments[item.name] = _decoded(hints[item.name], found[name], f"{where}.{name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise Corrupt(f"{where}: {name} is missing")
    return kind(**arguments)


def _decoded(kind: Any, found: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType):
        if found is None:
            return None
        (kind,) = (item for item in get_args(kind) if item is not type(None))
    if get_origin(kind) is tuple:
        if not isinstance(found, list):
            raise Corrupt(f"{where}: {found!r} is not a list")
        kinds = get_args(kind)
        if kinds[-1] is not Ellipsis and len(kinds) != len(found):
            raise Corrupt(f"{where}: {found!r} must have {len(kinds)} items")
        return tuple(
            _decoded(kinds[0] if kinds[-1] is Ellipsis else kinds[position], item, f"{where}[{position}]")
            for position, item in enumerate(found)
        )
    if is_dataclass(kind):
        return from_fields(kind, found, where=where)  # type: ignore[arg-type]
    try:
        if kind is datetime:
            return parse_stamp(found)
        if issubclass(kind, StrEnum):
            return kind(found)
    except (TypeError, ValueError) as error:
        raise Corrupt(f"{where}: {error}") from error
    if kind is float and type(found) is int:
        return float(found)
    if type(found) is not kind:
        raise Corrupt(f"{where}: {found!r} is not {kind.__name__}")
    return found


def _camel(name: str) -> str:
    first, *rest = name.removesuffix("_s").split("_")
    return first + "".join(part.capitalize() for part in rest) + ("Seconds" if name.endswith("_s") else "")
