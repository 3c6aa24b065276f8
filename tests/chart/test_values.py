"""values.schema.json: it refuses what is mistyped, and says where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest
import yaml
from helm_python import HelmError

from tests.chart import rendering
from tests.chart.value_sets import VALUE_SETS


def schema_objects(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the schema that has named properties."""
    if isinstance(node, dict):
        if "properties" in node:
            yield path, node
            for name, found in node["properties"].items():
                yield from schema_objects(found, f"{path}.{name}")
        yield from schema_objects(node.get("items"), f"{path}[]")


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS.keys())
def test_what_people_write_is_taken(values: dict[str, Any]) -> None:
    """Each set of values passes."""
    rendering.chart().validate_schema(values)


def test_what_the_documents_say_is_taken() -> None:
    """Each block of values in the documents, and each --set, passes and changes what is rendered."""
    texts = [path.read_text() for path in (rendering.ROOT / "README.md", *(rendering.ROOT / "docs").glob("*.md"))]
    blocks = [block for text in texts for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    known = set(yaml.safe_load(rendering.VALUES.read_text()))
    loaded = [item for block in blocks for item in yaml.safe_load_all(block)]
    found = [item for item in loaded if isinstance(item, dict) and item.keys() <= known]
    found += [helm_python.parse_set_string(given) for text in texts for given in re.findall(r"--set (\S+)", text)]

    assert len(found) >= 8
    for values in found:
        assert rendering.texts(values) != rendering.texts(), values


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"ccontroller": {}}, "'ccontroller'"),
        ({"controller": {"replica": 2}}, "'replica'"),
        ({"controller": {"replicas": "two"}}, "/controller/replicas"),
        ({"controller": {"replicas": -1}}, "/controller/replicas"),
        ({"controller": {"image": {"tag": 1.2}}}, "/controller/image/tag"),
        ({"controller": {"image": {"pullPolicy": "never"}}}, "/controller/image/pullPolicy"),
        ({"controller": {"settings": {"pollSecond": 1}}}, "'pollSecond'"),
        ({"controller": {"settings": {"pollSeconds": 0}}}, "/controller/settings/pollSeconds"),
        ({"controller": {"extraEnv": {"A": "b"}}}, "/controller/extraEnv"),
        ({"controller": {"extraEnv": [{"name": "A", "vvalue": "b"}]}}, "'vvalue'"),
        ({"controller": {"podLabels": {"a": 1}}}, "/controller/podLabels/a"),
        ({"controller": {"watchNamespace": "Not a name"}}, "/controller/watchNamespace"),
        ({"controller": {"healthPort": 0}}, "/controller/healthPort"),
        ({"worker": {"namespaces": "proteins"}}, "/worker/namespaces"),
        ({"worker": {"image": {"digest": "sha256:12"}}}, "/worker/image/digest"),
        ({"rbac": {"nodes": "yes"}}, "/rbac/nodes"),
        ({"metrics": {"interval": 30}}, "/metrics/interval"),
        ({"networkPolicy": {"egressPorts": ["https"]}}, "/networkPolicy/egressPorts/0"),
    ],
)
def test_what_is_mistyped_is_named(values: dict[str, Any], where: str) -> None:
    """A typing error must not become a default: Helm stops and says which value it is."""
    with pytest.raises(HelmError, match=where):
        rendering.texts(values)


def test_the_schema_is_strict_everywhere_and_knows_every_value() -> None:
    """No object takes unknown names, and the schema has the very values of values.yaml."""
    schema = rendering.chart().schema
    defaults = yaml.safe_load(rendering.VALUES.read_text())
    assert schema is not None
    open_ones = {"controller.extraVolumes[]", "controller.extraVolumeMounts[]"}  # Kubernetes' own, of many kinds
    known = dict(schema_objects(schema, ""))

    assert {
        path.lstrip(".") for path, node in known.items() if node.get("additionalProperties") is not False
    } == open_ones
    assert set(schema["properties"]) == set(defaults) | {"global"}
    for path, node in known.items():
        found: Any = defaults
        for name in path.strip(".").split(".") if path else []:
            found = found.get(name) if isinstance(found, dict) else None
        if found and path not in {"", ".controller.resources"}:  # an empty mapping is filled by whoever wants to
            assert set(node["properties"]) == set(found), path
