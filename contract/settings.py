"""What a worker must know of its run: written by the controller (or coordinator), read by the worker. Pure.

Travels as JSON text in the environment variable INFERENCERUN_SETTINGS.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from contract.errors import SpecError
from contract.plan import InputFormat

FORMAT_VERSION = 1


class RowKind(StrEnum):
    """What a row of `embeddings` is."""

    POOLED = "pooled"
    """One row per record."""
    PER_TOKEN = "perToken"  # noqa: S105  (not a secret)
    """One row per token; `row_splits` in the metadata says which rows are whose."""


class TooLong(StrEnum):
    """What happens to a record above maxLength."""

    TRUNCATE = "truncate"
    """Its first maxLength tokens are used; the checkpoint's metadata names it."""
    QUARANTINE = "quarantine"
    """It goes to quarantine as TooLong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which model, and how it is run."""

    name: str
    """`kmer`, `esm2` or `torch`."""
    source: str = ""
    """Where the weights or code are: a directory, a store prefix, `random:<seed>`, or `module:callable`."""
    parameters: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    """`fp32`, `bf16` or `fp16`: what the forward pass computes in."""
    dtype: str = "float32"
    """`float32`, `float16` or `bfloat16`: what rows are stored in."""
    kind: RowKind = RowKind.POOLED
    max_tokens_per_batch: int = 16384
    max_length: int | None = None
    """Tokens of a record without special tokens; None = the model's own limit."""
    on_too_long: TooLong = TooLong.TRUNCATE


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSettings:
    """When finished rows are written. The first threshold that is reached fires; all count from the last checkpoint."""

    every_records: int
    every_seconds: float
    every_bytes: int
    """What is pending must be uploadable within the grace period."""
    emergency_seconds: float
    """Fires even inside a batch window, at the next finished batch. Must exceed `every_seconds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Everything a worker must know of its run."""

    run: str
    run_uid: str
    output_uri: str
    generation: int
    input_format: InputFormat
    model: ModelSettings
    checkpoint: CheckpointSettings
    id_field: str = "id"
    """JSON lines: the member that holds a record's id; a record without it is named by its offset."""
    value_field: str | None = "sequence"
    """JSON lines: the member handed to the model; None = the whole object."""
    worker_index: int = 0
    """Where in the plan this worker starts to look for work: spreads the claims."""
    num_workers: int = 1
    grace_seconds: float = 30.0
    """From SIGTERM to SIGKILL; the drain must fit."""
    no_progress_seconds: float = 600.0
    """Exit 76 when no batch finishes for so long."""
    max_record_strikes: int = 2
    """Failures of a record, alone, before it is quarantined."""
    memory_bytes: int | None = None
    """Memory that this worker may use, less than another might be given: shards that are known to need more are left to that
    one. None = nobody is given more, or no limit is known."""
    device: str = "auto"
    """`auto` (cuda when there is one), `cpu` or `cuda:N`."""


def to_json(settings: WorkerSettings) -> str:
    """Text for the environment variable."""
    return json.dumps({**asdict(settings), "format_version": FORMAT_VERSION}, sort_keys=True)


def from_json(text: str) -> WorkerSettings:
    """The settings in `text`; raises SpecError when they are not ours."""
    try:
        fields = json.loads(text)
        if fields.pop("format_version") != FORMAT_VERSION:
            raise SpecError("worker settings of another format version: controller and worker image must match")
        model, checkpoint = fields.pop("model"), fields.pop("checkpoint")
        return WorkerSettings(
            model=ModelSettings(
                **{**model, "kind": RowKind(model["kind"]), "on_too_long": TooLong(model["on_too_long"])}
            ),
            checkpoint=CheckpointSettings(**checkpoint),
            **{**fields, "input_format": InputFormat(fields["input_format"])},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(f"worker settings cannot be read: {error!r}; controller and worker image must match") from error
