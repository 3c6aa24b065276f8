"""The CRD: in step with controller.api and controller.status both ways, and with its rendered copy."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml

from contract import names
from contract.errors import SpecError
from controller import fields as api_fields
from controller.api import parse_run
from controller.codec import _camel
from controller.fields import MAX_TEXT_LENGTH, MAX_TEXTS, Section, parse_quantity
from controller.status import RunStatus, status_fields
from tests import make
from tests.chart import rendering
from tests.chart.stored import INT_OR_STRING, OPEN, RULES, broken_rules, problems, stored
from tests.controller.test_api import FULL

SCHEMA = rendering.schema()
SPEC = SCHEMA["properties"]["spec"]
STATUS = SCHEMA["properties"]["status"]


def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every described node below `schema`, with its path; list items end in []."""
    yield path, schema
    for name, found in schema.get("properties", {}).items():
        yield from walk(found, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")


def without_words(schema: dict[str, Any]) -> dict[str, Any]:
    """The node itself: no description, rules or children."""
    return {name: item for name, item in schema.items() if name not in {"description", RULES, "properties", "required"}}


# What the API reads, in terms of the schema.

TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_LENGTH}
URI = {"anyOf": [{"pattern": "^(s3|gs|file)://.+$"}, {"not": {"pattern": "^[a-zA-Z][a-zA-Z0-9+.-]*://"}}]}
QUANTITY = {
    INT_OR_STRING: True,
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "pattern": f"^{api_fields._QUANTITY.pattern.replace('?:', '').replace(chr(92) + 'd', '[0-9]')}$",
}
OBJECT = {"type": "object"}


class Reads:
    """Notes each field that parse_run reads, as the schema that it amounts to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        for name in ("section", "integer", "optional_integer", "seconds", "optional_seconds", "quantity", "text"):
            self._wrap(monkeypatch, name)
        for name in ("nullable_text", "texts", "choice", "optional_choice", "boolean", "mapping"):
            self._wrap(monkeypatch, name)
        monkeypatch.setattr(Section, "has", lambda section, name: section._found.get(name) is not None)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        original = getattr(Section, name)

        def reader(section: Section, field: str, *args: Any, **options: Any) -> Any:
            note = getattr(self, name)(*args, **options)
            # Readers are built on one another: what the outermost says counts, and it comes first.
            self.found.setdefault(f"{section.path}.{field}", note)
            return original(section, field, *args, **options)

        monkeypatch.setattr(Section, name, reader)

    def section(self) -> dict[str, Any]:
        """A nested mapping."""
        return OBJECT

    def integer(self, default: int, *, minimum: int = 1, maximum: int | None = None) -> dict[str, Any]:
        """A whole number."""
        return self._integer(minimum, maximum) | {"default": default}

    def optional_integer(
        self, default: int | None = None, *, minimum: int = 1, maximum: int | None = None
    ) -> dict[str, Any]:
        """A whole number or null."""
        note = self._integer(minimum, maximum) | {"nullable": True}
        return note if default is None else note | {"default": default}

    @staticmethod
    def _integer(minimum: int, maximum: int | None) -> dict[str, Any]:
        note = {"type": "integer", "format": "int64", "minimum": minimum}
        return note if maximum is None else note | {"maximum": maximum}

    def seconds(self, default: float, *, minimum: float | None = None) -> dict[str, Any]:
        """A duration."""
        return self._seconds(minimum) | {"default": default}

    def optional_seconds(self, *, minimum: float | None = None) -> dict[str, Any]:
        """A duration or null."""
        return self._seconds(minimum) | {"nullable": True}

    @staticmethod
    def _seconds(minimum: float | None) -> dict[str, Any]:
        note = {"type": "number", "minimum": minimum or 0}
        return note | ({"exclusiveMinimum": True} if minimum is None else {})

    def quantity(self, default: int, *, minimum: int = 1) -> dict[str, Any]:
        """Bytes."""
        return QUANTITY | {"minimum": minimum, "default": default}

    def text(self, default: str | None = None) -> dict[str, Any]:
        """A text."""
        return TEXT | ({"default": default} if default else {})

    def nullable_text(self, default: str) -> dict[str, Any]:
        """A text or null."""
        return TEXT | {"nullable": True, "default": default}

    def texts(self) -> dict[str, Any]:
        """A list of texts."""
        return {"type": "array", "minItems": 1, "maxItems": MAX_TEXTS, "items": TEXT | URI}

    def choice(self, default: StrEnum) -> dict[str, Any]:
        """One of an enum."""
        return {"type": "string", "enum": {str(item) for item in type(default)}, "default": str(default)}

    def optional_choice(self, kind: type[StrEnum]) -> dict[str, Any]:
        """One of an enum, or nothing."""
        return {"type": "string", "enum": {str(item) for item in kind}}

    def boolean(self, *, default: bool) -> dict[str, Any]:
        """A yes or no."""
        return {"type": "boolean", "default": default}

    def mapping(self) -> dict[str, Any]:
        """Anything, passed on."""
        return OBJECT | {OPEN: True}


# Where the schema says more, or less, than one reader can: with the reason.
ADJUSTMENTS: dict[str, dict[str, Any]] = {
    "spec.output.uri": URI,  # checked apart from reading
    "spec.workers": {"default": {}},  # so that the scale subresource finds workers.count
    "spec.workers.capacity": {"default": {}},
}
NO_DEFAULT = {
    "spec.model.name": "it is required",
    "spec.failurePolicy.maxMemory": "without it nothing is raised",
    "spec.checkpoint.everyRecords": "the profile decides",
    "spec.checkpoint.everySeconds": "the profile decides",
    "spec.checkpoint.everyBytes": "the profile decides",
    "spec.checkpoint.emergencySeconds": "the profile decides",
}


def comparable(schema: dict[str, Any]) -> dict[str, Any]:
    """The node with enums as sets, and quantities as bytes."""
    found = without_words(schema)
    if "enum" in found:
        found["enum"] = set(found["enum"])
    if found.get(INT_OR_STRING) and isinstance(found.get("default"), str):
        found["default"] = parse_quantity(found["default"])
    return found


def test_the_schema_is_what_the_api_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field of the spec has the same type, default, bounds and values on both sides, and none is missing."""
    reads = Reads(monkeypatch)
    parse_run(make.resource(FULL))
    read = {path: note for path, note in reads.found.items() if path.startswith("spec.")}
    expected = {
        path: {name: item for name, item in note.items() if not (name == "default" and path in NO_DEFAULT)}
        | ADJUSTMENTS.get(path, {})
        for path, note in read.items()
    }
    found = {path: comparable(node) for path, node in walk(SPEC, "spec") if path != "spec" and not path.endswith("[]")}

    assert len(found) > 50
    assert found == expected


PROBES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "Auto", "torch", "spot", "x" * 2048, "x" * 2049),
    *("64Mi", "1.5Gi", "64MB", "-1", "1024", "s3://b/k", "gs://b/k", "abfs://b/k", "file:///d"),
    *(-1, 0, 1, 2, 16, 17, 10_000, 10_001, 0.5, -0.5, 10**9),
    *([], {}, ["x"], [""], [1], ["x"] * 1000, ["x"] * 1001, {"x": 1}),
)


def is_taken(resource: dict[str, Any]) -> bool:
    """Whether controller.api takes it."""
    try:
        parse_run(resource)
    except SpecError:
        return False
    return True


def with_field(path: str, value: Any) -> dict[str, Any]:
    """A valid resource with one field set."""
    resource = make.resource({"model": {"source": "my_models:build"}, "checkpoint": {"profile": "default"}})
    *sections, name = path.split(".")[1:]
    where = resource["spec"]
    for section in sections:
        where = where.setdefault(section, {})
    where[name] = value
    return resource


LEAVES = [
    path
    for path, node in walk(SPEC, "spec")
    if "properties" not in node and OPEN not in node and not path.endswith("[]")
]


@pytest.mark.parametrize("path", LEAVES)
def test_schema_and_api_take_and_refuse_the_same(path: str) -> None:
    """Whatever is written into a field: the CRD takes it exactly if controller.api does."""
    resources = [with_field(path, value) for value in PROBES]
    by_schema = [not problems(found, SCHEMA) and not broken_rules(found, SCHEMA) for found in resources]
    by_api = [is_taken(found) for found in resources]
    rows = zip(PROBES, by_schema, by_api, strict=True)

    assert [(repr(probe)[:30], *taken) for probe, *taken in rows if taken[0] != taken[1]] == []
    assert set(by_api) == {True, False}


DEFAULTS = {path: node["default"] for path, node in walk(SPEC, "spec") if "default" in node and path != "spec.workers"}


@pytest.mark.parametrize("path", DEFAULTS)
def test_writing_a_default_changes_nothing(path: str) -> None:
    """A field with the CRD's default is the same run as one without the field."""
    written, absent = with_field(path, DEFAULTS[path]), with_field(path, DEFAULTS[path])
    *sections, name = path.split(".")[1:]
    where = absent["spec"]
    for section in sections:
        where = where[section]
    del where[name]

    assert parse_run(written) == parse_run(absent)


def test_required_fields() -> None:
    """What the schema requires, the API requires, and nothing else."""
    required = [f"{path}.{name}" for path, node in walk(SPEC, "spec") for name in node.get("required", ())]
    refused = []
    for path in [path for path, _ in walk(SPEC, "spec") if "[]" not in path and path != "spec"]:
        resource = make.resource(FULL)
        *sections, name = path.split(".")[1:]
        where = resource["spec"]
        for section in sections:
            where = where.get(section, {})
        where.pop(name, None)
        if not is_taken(resource) and path not in {"spec.model.source", "spec.model.parameters"}:  # this model's needs
            refused.append(path)

    assert sorted(refused) == sorted(required)


# The status.


def schema_of(kind: Any, path: str) -> dict[str, Any]:
    """The schema of a value of this type, as `controller.codec.to_fields` writes it."""
    if isinstance(kind, types.UnionType):
        (inner,) = (item for item in get_args(kind) if item is not type(None))
        return schema_of(inner, path) | {"nullable": True}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": schema_of(get_args(kind)[0], path)}
    if get_origin(kind) is Mapping:
        return {"type": "object", "additionalProperties": schema_of(get_args(kind)[1], path)}
    if is_dataclass(kind):
        return {"type": "object"}
    if kind is datetime:
        return {"type": "string", "format": "date-time"}
    if issubclass(kind, StrEnum):
        return {"type": "string"}
    return {int: {"type": "integer", "format": "int64"}, str: {"type": "string"}}[kind]


def walk_type(kind: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field below a dataclass, with its schema."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        hint, where = hints[item.name], f"{path}.{_camel(item.name)}"
        yield where, schema_of(hint, where)
        if is_dataclass(hint):
            yield from walk_type(hint, where)
        elif get_origin(hint) is tuple:
            yield from walk_type(get_args(hint)[0], f"{where}[]")


BEYOND = {"status.workers.selector", "status.memory"}
"""What the controller adds to status_fields."""
STATUS_ENUMS = {
    "status.phase": set(names.Phase),
    "status.conditions[].type": set(names.ConditionType),
    "status.conditions[].status": {"True", "False", "Unknown"},
}


def test_the_status_schema_is_what_is_written() -> None:
    """Each field of RunStatus has its type in the CRD; none is missing on either side, or it would be pruned."""
    written = {path.replace("failureClass", "class"): found for path, found in walk_type(RunStatus, "status")}
    found = {
        path: {
            name: without_words(item) if name == "items" else item
            for name, item in without_words(node).items()
            if name not in {"enum", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"}
        }
        for path, node in walk(STATUS, "status")
        if path not in BEYOND and path != "status" and not path.endswith("[]")
    }

    assert found == written
    assert {path for path, _ in walk(STATUS, "status")} >= BEYOND
    assert {path: set(node["enum"]) for path, node in walk(STATUS, "status") if "enum" in node} == STATUS_ENUMS


def test_a_status_as_written_is_stored_whole() -> None:
    """The schema takes a status, and prunes nothing of it."""
    status = status_fields(RunStatus())

    assert problems({**make.resource(), "status": status}, SCHEMA) == []
    assert stored(status, STATUS) == status


# The frame.


def test_everything_is_described() -> None:
    """Each field says what it means, in a sentence."""
    undescribed = [
        path
        for part in ("spec", "status")
        for path, node in walk(SCHEMA["properties"][part], part)
        if not path.endswith("[]") and not re.fullmatch(r".{5,}\.", node.get("description", ""))
    ]

    assert undescribed == []


def test_names_are_those_of_the_contract() -> None:
    """Group, version and kind are what parse_run expects."""
    spec = rendering.crd()["spec"]

    assert (spec["group"], spec["versions"][0]["name"], spec["names"]["kind"]) == (
        names.API_GROUP,
        names.API_VERSION,
        names.KIND,
    )
    assert rendering.crd()["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    assert spec["names"]["shortNames"] == ["irun"]


def test_columns_and_scale_point_at_fields() -> None:
    """Each column and each path of the scale subresource names a field that exists, of the type it claims."""
    (version,) = rendering.crd()["spec"]["versions"]
    known = {f".{path}": node for part in ("spec", "status") for path, node in walk(SCHEMA["properties"][part], part)}
    known[".status.restarts.byClass.SpotEviction"] = known[".status.restarts.byClass"]["additionalProperties"]
    known[".metadata.creationTimestamp"] = {"type": "date"}
    columns = version["additionalPrinterColumns"]
    scale = version["subresources"]["scale"]

    assert [column["name"] for column in columns if not column.get("priority")] == [
        *("Phase", "Percent", "Workers", "Evictions", "Records/s", "ETA(s)", "Age")
    ]
    assert [c["name"] for c in columns if known.get(c["jsonPath"], {}).get("type") != c["type"]] == []
    assert [path for path in scale.values() if path not in known] == []
    assert names.FailureClass.SPOT_EVICTION.value == "SpotEviction"
    assert version["subresources"]["status"] == {}


def test_old_servers_get_no_rules() -> None:
    """Servers before 1.25 refuse x-kubernetes-validations: without them, nothing else is missing."""

    def pruned(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: pruned(item) for name, item in node.items() if name != RULES}
        return [pruned(item) for item in node] if isinstance(node, list) else node

    assert RULES not in rendering.render(has_rules=False)
    assert rendering.crd(has_rules=False) == pruned(rendering.crd())
    assert rendering.crd(has_rules=False) != rendering.crd()


def test_the_deployed_copies_are_rendered_from_the_chart() -> None:
    """deploy/crd.yaml and deploy/install.yaml are up to date; `make verify` writes them."""
    assert rendering.CRD_COPY.read_text() == rendering.CRD_HEADER + rendering.render()
    assert rendering.INSTALL_COPY.read_text() == rendering.install()


@pytest.mark.parametrize("path", sorted((rendering.ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_pass_the_schema(path: Any) -> None:
    """Each example is taken."""
    assert problems(yaml.safe_load(path.read_text()), SCHEMA) == []
