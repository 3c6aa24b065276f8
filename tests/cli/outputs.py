"""Builds outputs as workers leave them: real input, plan, checkpoints and manifests, with rows that can be recomputed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result

from cli.main import main
from contract import index, layout, manifest, plan, run_record, transitions
from contract.flight import MAX_ID_LENGTH
from contract.manifest import Checkpoint, Owner, Quarantined, ShardManifest
from contract.names import QuarantineClass
from contract.plan import Compression, InputFormat, InputObject, Plan, Shard
from contract.run_record import ModelIdentity, RunRecord
from contract.store.open import open_store, split_object_uri
from contract.store.protocol import ObjectStore
from worker.records.open import read_records
from worker.records.record import Record
from worker.records.source import open_source

WIDTH = 6
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OWNER = Owner(pod="made-0", uid="uid-0", node="node-a")


@dataclass(kw_only=True)
class Made:
    """An output, and what its author knows of it."""

    store: ObjectStore
    plan: Plan
    record: RunRecord
    records: dict[int, list[Record]]
    """All records by shard."""

    @property
    def uri(self) -> str:
        """The output's URI."""
        return self.store.uri

    def manifest(self, shard: int) -> ShardManifest:
        """A shard's manifest, as stored."""
        key = layout.build_shard_key(self.record.generation, shard)
        return manifest.from_json(self.store.get(key).body, where=key)

    def overwrite(self, changed: ShardManifest) -> None:
        """Put a manifest as it is, legal or not."""
        key = layout.build_shard_key(self.record.generation, changed.shard)
        self.store.put_overwrite(key, manifest.to_json(changed))

    def manifests(self) -> list[ShardManifest]:
        """All manifests there are."""
        prefix = layout.build_shards_prefix(self.record.generation)
        found = [layout.parse_shard_key(item.key) for item in self.store.list(prefix)]
        return [self.manifest(parsed[1]) for parsed in found if parsed is not None]

    def rows(self) -> list[tuple[str, int, str]]:
        """(object, offset, id) of every sound record, in input order."""
        return [
            (self.plan.shards[shard].object, record.offset, record.id)
            for shard, records in sorted(self.records.items())
            for record in records
            if record.problem is None
        ]

    def finish(self) -> None:
        """Write index.json and _SUCCESS."""
        generation = self.record.generation
        content = index.to_json(index.build_index(self.manifests(), generation=generation))
        self.store.put_overwrite(layout.build_index_key(generation), content)
        self.store.put_overwrite(layout.build_success_key(generation), b"")


def run(*arguments: str | Path) -> Result:
    """The command's result, with exceptions that are not exits raised as they are."""
    return CliRunner().invoke(main, [str(item) for item in arguments], catch_exceptions=False)


def run_json(*arguments: str | Path, exit_code: int = 0) -> dict[str, Any]:
    """What the command prints with --json: exactly one line."""
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 1, lines
    fields = json.loads(lines[0])
    assert isinstance(fields, dict)
    return fields


def make_output(
    directory: Path,
    *,
    output_uri: str | None = None,
    num_records: int = 40,
    num_objects: int = 2,
    shard_bytes: int = 700,
    per_checkpoint: int = 4,
    bad: Iterable[int] = (5, 23),
    bad_suffix: str = "",
    dtype: str = "float32",
    kind: str = "pooled",
    only_shards: Sequence[int] | None = None,
    stop_after: dict[int, int] | None = None,
    is_finished: bool = True,
    width: int = WIDTH,
    name: str = "made",
) -> Made:
    """A run over FASTA files with `num_records` records each.

    Args:
        directory: for input and output.
        output_uri: the output, if not below `directory`.
        num_records: of each object.
        num_objects: input files.
        shard_bytes: of the plan.
        per_checkpoint: records of each checkpoint.
        bad: numbers of the records of the first object that no reader accepts: they are quarantined.
        bad_suffix: what their ids end in.
        dtype: of the rows.
        kind: `pooled` or `perToken`.
        only_shards: those that have been claimed; None = all.
        stop_after: shards still running, by the number of checkpoints they have.
        is_finished: whether index.json and _SUCCESS are there.
        width: of the rows.
        name: of the run.
    """
    objects = tuple(
        _input_object(directory, number, num_records, frozenset(bad) if number == 0 else frozenset(), bad_suffix)
        for number in range(num_objects)
    )
    store = open_store(output_uri or str(directory / "out"))
    made = Made(
        store=store,
        plan=plan.cut(objects, generation=1, fmt=InputFormat.FASTA, shard_bytes=shard_bytes),
        record=_record(objects, name=name, shard_bytes=shard_bytes, dtype=dtype, kind=kind),
        records={},
    )
    store.put_create(layout.RUN_KEY, run_record.to_json(made.record))
    store.put_create(layout.build_plan_key(1), plan.to_json(made.plan))
    for shard in made.plan.shards:
        made.records[shard.shard] = list(records_of(made.plan, shard))
        if only_shards is None or shard.shard in only_shards:
            stop = (stop_after or {}).get(shard.shard)
            written = write_shard(made, shard, per_checkpoint=per_checkpoint, stop_after=stop, width=width)
            made.store.put_create(layout.build_shard_key(1, shard.shard), manifest.to_json(written))
    if is_finished:
        made.finish()
    return made


def records_of(shards: Plan, shard: Shard) -> Iterable[Record]:
    """The shard's records, as a worker reads them."""
    planned = next(item for item in shards.objects if item.uri == shard.object)
    source = open_source(planned)
    return read_records(source, fmt=shards.format, compression=shard.compression, start=shard.start, end=shard.end)


def write_shard(
    made: Made, shard: Shard, *, per_checkpoint: int, stop_after: int | None = None, width: int = WIDTH
) -> ShardManifest:
    """Put a shard's checkpoints and return its manifest: complete, or running after `stop_after` checkpoints."""
    records = made.records[shard.shard]
    current = transitions.first_claim(shard, generation=1, owner=OWNER, commit_id="claim", now=NOW)
    groups = [records[at : at + per_checkpoint] for at in range(0, len(records), per_checkpoint)]
    for number, group in enumerate(groups[:stop_after], start=1):
        sound = [record for record in group if record.problem is None]
        current = transitions.committed(
            current,
            commit_id=f"commit-{number}",
            checkpoint=put_checkpoint(made, current, sound, number=number, width=width) if sound else None,
            quarantined=[quarantined(record) for record in group if record.problem is not None],
            bytes_done=group[-1].position,
        )
    if stop_after is None:
        current = transitions.committed(current, commit_id="end", records=len(records))
    problem = manifest.invariants(replace(current, version=1), None)
    assert problem is None, problem
    return current


def quarantined(record: Record) -> Quarantined:
    """The record's entry in quarantine."""
    return Quarantined(
        ordinal=record.ordinal,
        offset=record.offset,
        id=record.id[:MAX_ID_LENGTH],
        quarantine_class=QuarantineClass.INVALID_RECORD,
        detail=record.problem or "",
    )


def put_checkpoint(
    made: Made, current: ShardManifest, records: Sequence[Record], *, number: int, width: int = WIDTH
) -> Checkpoint:
    """Put a data object of these records; returns what the manifest says of it."""
    body = serialised(content(made, current, records, number=number, width=width))
    key = layout.build_data_key(current.generation, current.shard, current.epoch, number)
    made.store.put_create(key, body)
    return Checkpoint(
        key=key,
        number=number,
        epoch=current.epoch,
        first=records[0].ordinal,
        next=records[-1].ordinal + 1,
        records=len(records),
        bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        created_at=NOW,
        seconds=1.0,
        next_offset=records[-1].next_offset,
    )


def content(
    made: Made, current: ShardManifest, records: Sequence[Record], *, number: int, width: int = WIDTH
) -> dict[str, Any]:
    """What a checkpoint of these records holds."""
    model = made.record.model
    lengths = [num_rows(record.id) if model.kind == "perToken" else 1 for record in records]
    rows = [row(record.id, length, width, model.dtype) for record, length in zip(records, lengths, strict=True)]
    metadata: dict[str, Any] = {
        "object": current.object,
        "offsets": torch.tensor([record.offset for record in records], dtype=torch.int64),
        "ordinals": torch.tensor([record.ordinal for record in records], dtype=torch.int64),
        "first": records[0].ordinal,
        "truncated": torch.tensor([], dtype=torch.int64),
        "run": made.record.name,
        "generation": current.generation,
        "shard": current.shard,
        "epoch": current.epoch,
        "number": number,
        "model": model.name,
        "source": model.source,
        "dtype": model.dtype,
        "kind": model.kind,
        "reason": "sequence_threshold",
        "versions": {},
    }
    if model.kind == "perToken":
        metadata["row_splits"] = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    return {
        "embeddings": torch.cat(rows),
        "sequence_ids": [record.id for record in records],
        "metadata": metadata,
    }


def serialised(checkpoint: dict[str, Any]) -> bytes:
    """The bytes of a data object."""
    buffer = BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def num_rows(record_id: str) -> int:
    """Per token: how many rows a record has."""
    return 1 + sum(record_id.encode()) % 4


def row(record_id: str, length: int, width: int, dtype: str) -> torch.Tensor:
    """The rows of a record, a function of its id."""
    seed = int.from_bytes(hashlib.sha256(record_id.encode()).digest()[:4])
    values = torch.rand(length, width, generator=torch.Generator().manual_seed(seed))
    return values.to(getattr(torch, dtype))


def _input_object(directory: Path, number: int, num_records: int, bad: frozenset[int], bad_suffix: str) -> InputObject:
    path = directory / f"input-{number}.fasta"
    text = "".join(
        f">rec{number}_{item}{bad_suffix if item in bad else ''} some words\n"
        f"{'AC1DE' if item in bad else 'ACDEFGHIKL' * (1 + item % 5)}\n"
        for item in range(num_records)
    )
    path.write_text(text)
    root, key = split_object_uri(str(path))
    listed = next(item for item in open_store(root).list(key) if item.key == key)
    return InputObject(uri=f"file://{path}", size=listed.size, etag=listed.etag, compression=Compression.NONE)


def _record(objects: tuple[InputObject, ...], *, name: str, shard_bytes: int, dtype: str, kind: str) -> RunRecord:
    return RunRecord(
        name=name,
        uid="uid-run",
        generation=1,
        input=run_record.input_identity(objects, fmt=InputFormat.FASTA, id_field="id", value_field="sequence"),
        model=ModelIdentity(
            name="kmer",
            source="",
            parameters_json="{}",
            precision="fp32",
            dtype=dtype,
            kind=kind,
            max_length=None,
            on_too_long="truncate",
        ),
        shard_bytes=shard_bytes,
        version=1,
        commit_id="open",
        history=("open",),
    )
