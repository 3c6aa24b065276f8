"""docs/spec.md: every field of an InferenceRun's spec, written from the resource's definition.

python -m tests.docs.spec_reference
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEFINITION = ROOT / "deploy" / "crd.yaml"
PAGE = ROOT / "docs" / "spec.md"

_HEAD = """# Fields of a run

Every field of `spec`, from the resource's definition (`make verify` writes this page). On a cluster,
`kubectl explain inferencerun.spec --recursive` says the same. Unknown fields are refused. Sizes are numbers of
bytes or quantities such as `64Mi`; times are seconds.
"""


def page() -> str:
    """The page as it must be."""
    (definition,) = yaml.safe_load_all(DEFINITION.read_text())
    (version,) = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    parts = [_HEAD]
    simple = [name for name, schema in spec["properties"].items() if "properties" not in schema]
    for name, schema in spec["properties"].items():
        if name not in simple:
            parts.append(f"\n## {name}\n\n{schema['description']}\n\n{_table(_fields(schema))}")
    rest = {"properties": {name: spec["properties"][name] for name in simple}, "required": spec.get("required", [])}
    parts.append(f"\n## Other fields\n\n{_table(_fields(rest))}")
    return "".join(parts)


def _fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(path, values, default, meaning) of each field below a schema."""
    for name, field in schema.get("properties", {}).items():
        where = f"{path}{name}"
        if "properties" in field:
            yield from _fields(field, f"{where}.")
            continue
        default = f"`{json.dumps(field['default'])}`" if "default" in field else ""
        if name in schema.get("required", []):
            default = "required"
        yield f"`{where}`", _values(field), default, field.get("description", "")


def _values(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " ".join(f"`{item}`" for item in field["enum"])
    kind = field.get("type") or ("size" if field.get("x-kubernetes-int-or-string") else "anything")
    bounds = [f"{word} {field[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in field]
    return " ".join([kind, *bounds, *(["or null"] if field.get("nullable") else [])])


def _table(rows: Iterator[tuple[str, str, str, str]]) -> str:
    lines = ["| field | values | default | meaning |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
