"""Worker settings: what the controller writes is what the worker gets, or a clear refusal."""

from __future__ import annotations

import dataclasses
import json

import pytest

from contract import settings
from contract.errors import SpecError
from contract.settings import WorkerSettings
from tests.contract import values


def test_round_trip() -> None:
    """Every field survives the environment variable, enums as enums."""
    original = values.worker_settings()

    restored = settings.from_json(settings.to_json(original))

    assert restored == original
    assert type(restored.model.kind) is settings.RowKind
    assert type(restored.model.on_too_long) is settings.TooLong
    assert type(restored.input_format) is type(original.input_format)


def test_equal_settings_are_equal_text() -> None:
    """The text is the same whoever writes it, so a pod template does not change for nothing."""
    assert settings.to_json(values.worker_settings()) == settings.to_json(values.worker_settings())


REQUIRED = [
    field.name
    for field in dataclasses.fields(WorkerSettings)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
]


@pytest.mark.parametrize("field", REQUIRED)
def test_a_missing_field_is_refused(field: str) -> None:
    """Settings without a required field are those of another image."""
    fields = json.loads(settings.to_json(values.worker_settings()))
    del fields[field]

    with pytest.raises(SpecError, match="controller and worker image must match"):
        settings.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"unknown": 1},
        {"input_format": "xml"},
        {"model": {"name": "kmer", "kind": "pooled", "on_too_long": "drop"}},
        {"model": []},
        {"checkpoint": None},
    ],
)
def test_foreign_settings_are_refused(change: dict[str, object]) -> None:
    """Another version, an unknown field or value: the worker stops before it touches anything."""
    fields = {**json.loads(settings.to_json(values.worker_settings())), **change}

    with pytest.raises(SpecError, match="controller and worker image must match"):
        settings.from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "not json"])
def test_text_that_is_no_settings_is_refused(text: str) -> None:
    """An empty or garbled variable is a SpecError, not a crash."""
    with pytest.raises(SpecError):
        settings.from_json(text)
