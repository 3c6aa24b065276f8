"""run.json: what a run is (input and model identity) and which generation is current. Pure.

The identity keeps two different computations from ever sharing one output: a run that meets another identity stops.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from contract.documents import canonical, decode, encode, reading_fields
from contract.plan import InputFormat, InputObject

KIND = "RunRecord"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What decides the numbers of a row. Two runs with equal identity may share an output."""

    name: str
    source: str
    parameters_json: str
    """Canonical JSON of the model's parameters."""
    precision: str
    dtype: str
    kind: str
    max_length: int | None
    on_too_long: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputIdentity:
    """What decides the records: objects by uri, size and ETag, and how they are read."""

    format: InputFormat
    id_field: str
    value_field: str | None
    num_objects: int
    total_bytes: int
    sha256: str
    """Over (uri, size, etag) of all objects in URI order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One version of run.json."""

    name: str
    uid: str
    generation: int
    input: InputIdentity
    model: ModelIdentity
    shard_bytes: int
    version: int
    commit_id: str
    history: tuple[str, ...]
    is_archived: bool = False
    """An archived run is read-only: no coordinator may open it again."""
    input_uris: tuple[str, ...] | None = None
    """What the spec named as input, made comparable; None = an older version did not keep it. It tells whether a spec still
    asks for the same input without a listing, which would show what has come since."""
    opened_for: str | None = None
    """The request for a restart that opened this generation, so that it opens no other; None = nobody asked for one."""


def input_identity(
    objects: tuple[InputObject, ...], *, fmt: InputFormat, id_field: str, value_field: str | None
) -> InputIdentity:
    """Identity of a listing."""
    ordered = sorted(objects, key=lambda item: item.uri)
    return InputIdentity(
        format=fmt,
        id_field=id_field,
        value_field=value_field,
        num_objects=len(ordered),
        total_bytes=sum(item.size for item in ordered),
        sha256=hashlib.sha256(canonical({"objects": [[i.uri, i.size, i.etag] for i in ordered]})).hexdigest(),
    )


def differences(wanted: RunRecord, found: RunRecord) -> tuple[str, ...]:
    """What makes `found` another run than `wanted`, in words; empty when they are the same."""
    of_input = ("format", "id_field", "value_field", "num_objects", "total_bytes", "sha256")
    of_model = ("name", "source", "parameters_json", "precision", "dtype", "kind", "max_length", "on_too_long")
    pairs: list[tuple[str, object, object]] = [
        *((f"input.{field}", getattr(wanted.input, field), getattr(found.input, field)) for field in of_input),
        *((f"model.{field}", getattr(wanted.model, field), getattr(found.model, field)) for field in of_model),
        ("shardBytes", wanted.shard_bytes, found.shard_bytes),
    ]
    return tuple(f"{name}: this spec has {new!s}, the output has {old!s}" for name, new, old in pairs if new != old)


def to_json(record: RunRecord) -> bytes:
    """Stored bytes."""
    fields: dict[str, Any] = {
        "name": record.name,
        "uid": record.uid,
        "generation": record.generation,
        "shardBytes": record.shard_bytes,
        "input": {
            "format": record.input.format.value,
            "idField": record.input.id_field,
            "valueField": record.input.value_field,
            "numObjects": record.input.num_objects,
            "totalBytes": record.input.total_bytes,
            "sha256": record.input.sha256,
            "uris": None if record.input_uris is None else list(record.input_uris),
        },
        "model": {
            "name": record.model.name,
            "source": record.model.source,
            "parameters": record.model.parameters_json,
            "precision": record.model.precision,
            "dtype": record.model.dtype,
            "kind": record.model.kind,
            "maxLength": record.model.max_length,
            "onTooLong": record.model.on_too_long,
        },
        "version": record.version,
        "commitId": record.commit_id,
        "history": list(record.history),
        "archived": record.is_archived,
        "openedFor": record.opened_for,
    }
    return encode(KIND, FORMAT_VERSION, fields)


def from_json(body: bytes, *, where: str) -> RunRecord:
    """The record stored in `body`; raises Corrupt or NewerFormat."""
    fields = decode(KIND, FORMAT_VERSION, body, where=where)
    with reading_fields(KIND, where=where):
        source, model = fields["input"], fields["model"]
        return RunRecord(
            name=fields["name"],
            uid=fields["uid"],
            generation=fields["generation"],
            shard_bytes=fields["shardBytes"],
            input=InputIdentity(
                format=InputFormat(source["format"]),
                id_field=source["idField"],
                value_field=source["valueField"],
                num_objects=source["numObjects"],
                total_bytes=source["totalBytes"],
                sha256=source["sha256"],
            ),
            model=ModelIdentity(
                name=model["name"],
                source=model["source"],
                parameters_json=model["parameters"],
                precision=model["precision"],
                dtype=model["dtype"],
                kind=model["kind"],
                max_length=model["maxLength"],
                on_too_long=model["onTooLong"],
            ),
            version=fields["version"],
            commit_id=fields["commitId"],
            history=tuple(fields["history"]),
            is_archived=fields["archived"],
            # Both are absent where an older version wrote the record.
            input_uris=None if source.get("uris") is None else tuple(source["uris"]),
            opened_for=fields.get("openedFor"),
        )
