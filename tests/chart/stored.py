"""What an API server makes of a resource before it stores it, as far as the CRD decides: prune, default, validate, rules.

Enough of Kubernetes' treatment of structural schemas to test the CRD without a server; tests/e2e has a real one.
Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import cel
import jsonschema

INT_OR_STRING = "x-kubernetes-int-or-string"
OPEN = "x-kubernetes-preserve-unknown-fields"
RULES = "x-kubernetes-validations"


def stored(value: Any, schema: dict[str, Any]) -> Any:
    """`value` as stored: unknown fields and stray nulls pruned, defaults filled in."""
    if isinstance(value, list):
        return [stored(item, schema.get("items", {})) for item in value]
    properties = schema.get("properties")
    if not isinstance(value, dict) or properties is None:
        return value
    kept = {
        name: item
        for name, item in value.items()
        if name in properties and (item is not None or properties[name].get("nullable"))
    }
    for name, found in properties.items():
        if name not in kept and "default" in found:
            kept[name] = deepcopy(found["default"])
    return {name: stored(item, properties[name]) for name, item in kept.items()}


def as_json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI schema in terms of JSON Schema, which knows no `nullable`, and whose exclusive bounds are numbers."""
    known = {name: item for name, item in schema.items() if not name.startswith("x-") and name != "description"}
    if schema.get(INT_OR_STRING):
        known["type"] = ["integer", "string"]
    if schema.get("nullable"):
        known["type"] = [known["type"], "null"]
    if schema.get("exclusiveMinimum"):
        known["exclusiveMinimum"] = known.pop("minimum")
    if "properties" in schema:
        known["properties"] = {name: as_json_schema(item) for name, item in schema["properties"].items()}
    for name in ("items", "additionalProperties"):
        if name in schema:
            known[name] = as_json_schema(schema[name])
    return known


def problems(resource: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Why the schema refuses the resource; empty when it takes it."""
    validator = jsonschema.Draft202012Validator(as_json_schema(schema))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(stored(resource, schema))]


def broken_rules(
    new: dict[str, Any], schema: dict[str, Any], *, old: dict[str, Any] | None = None
) -> list[tuple[str, str]]:
    """(rule, message) of each CEL rule that refuses `new`, which replaces `old` (None = it is created)."""
    return list(_broken(stored(new, schema), None if old is None else stored(old, schema), schema))


def _broken(new: Any, old: Any, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if new is None:
        return
    for item in schema.get(RULES, ()):
        is_transition = "oldSelf" in item["rule"]
        if not is_transition or old is not None:
            known = {"self": _typed(new, schema)} | ({"oldSelf": _typed(old, schema)} if is_transition else {})
            if cel.evaluate(item["rule"], known) is not True:
                yield item["rule"], item["message"]
    for name, found in schema.get("properties", {}).items():
        if isinstance(new, dict) and name in new:
            yield from _broken(new[name], old.get(name) if isinstance(old, dict) else None, found)


def _typed(value: Any, schema: dict[str, Any]) -> Any:
    """`value` with the types that CEL sees: a number is a double, however it is written."""
    if isinstance(value, dict):
        return {name: _typed(item, schema.get("properties", {}).get(name, {})) for name, item in value.items()}
    if schema.get("type") == "number" and value is not None:
        return float(value)
    return value
