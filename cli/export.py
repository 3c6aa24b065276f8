"""`inferencerun export`: all rows of a generation, in input order, in one file.

Streaming: one checkpoint after the other is fetched, checked and appended, so memory stays bounded whatever the size. The
file appears under its name when it is whole, or not at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from cli.checkpoints import Rows, in_input_order, metadata_problems, read_checkpoint
from cli.formats import FORMATS, Facts, Part, Writer
from cli.output import Output, is_finished, open_output, read_manifests
from cli.present import generation_option, json_option, output_argument, print_json
from cli.texts import size_text
from contract.errors import Corrupt, SpecError
from contract.manifest import Checkpoint, ShardManifest
from contract.settings import RowKind


@click.command(name="export")
@output_argument
@click.argument("dest", type=click.Path(dir_okay=False, path_type=Path))
@generation_option
@click.option("--partial", "is_partial", is_flag=True, help="Export what there is of an unfinished run.")
@json_option
def command(output_uri: str, dest: Path, generation: int | None, *, is_partial: bool, as_json: bool) -> None:
    """Write all rows, in input order, to DEST; its suffix chooses the format.

    \b
    .pt           embeddings, sequence_ids and metadata, as in a checkpoint
    .npy          the rows; DEST.ids.jsonl beside it: id, object and offset, one record a line
    .safetensors  the rows as 'embeddings', 'offsets'; DEST.ids.jsonl beside it
    .parquet      id, object, offset, embedding

    Rows per token are concatenated; row_splits says which are whose (.npy: in DEST.row_splits.npy; .parquet: a list of
    rows per record). bfloat16 becomes float32 in .npy and .parquet, which do not know it.
    """  # noqa: D301  (click's mark for a paragraph that is not to be wrapped)
    output = open_output(output_uri, generation)
    if not is_partial and not is_finished(output):
        raise SpecError(f"{output.uri}: the run is not complete; finish it, or export what there is with --partial")
    found = read_manifests(output)
    if found.unreadable:
        raise Corrupt(found.unreadable[0].message)
    facts = export(output, found.readable, dest)
    num_quarantined = sum(len(item.quarantined) for item in found.readable)
    if as_json:
        print_json({**facts, "quarantined": num_quarantined, "partial": is_partial})
    else:
        sizes = f"{facts['rows']} rows of {facts['width']} x {facts['dtype']}"
        click.echo(
            f"{facts['records']} records, {sizes}, {size_text(int(facts['bytes']))}; {num_quarantined} quarantined"
        )
        for name in facts["files"]:
            click.echo(f"  {name}")


def export(output: Output, manifests: Sequence[ShardManifest], dest: Path) -> dict[str, Any]:
    """Write the rows of these manifests to `dest`.

    Returns:
        What was written, for the user: files, records, rows, width, dtype, bytes.

    Raises:
        SpecError: the suffix is no format, or `dest` cannot be written.
        Corrupt: a checkpoint is damaged; nothing is left of the export.
    """
    if dest.suffix not in FORMATS:
        raise SpecError(f"{dest}: the suffix chooses the format; use one of {', '.join(FORMATS)}")
    try:
        with tempfile.TemporaryDirectory(dir=dest.absolute().parent, prefix=f".{dest.name}.") as directory:
            facts, num_rows = _write(output, manifests, Path(directory) / dest.name)
            files = _publish(Path(directory), dest)
    except OSError as error:
        raise SpecError(
            f"{dest}: cannot be written: {error.strerror or error}; choose another place or make room"
        ) from error
    return {
        "files": [str(path) for path in files],
        "records": facts.num_records,
        "rows": num_rows,
        "width": facts.width,
        "dtype": str(facts.dtype).removeprefix("torch."),
        "bytes": sum(path.stat().st_size for path in files),
    }


def _write(output: Output, manifests: Sequence[ShardManifest], path: Path) -> tuple[Facts, int]:
    facts = _facts(output, manifests, width=0)
    writer: Writer | None = None
    num_rows = 0
    for part in _parts(output, manifests):
        if writer is None:
            facts = replace(facts, width=part.embeddings.shape[1])
            writer = FORMATS[path.suffix](path, facts)
        if part.embeddings.shape[1] != facts.width:
            raise Corrupt(
                f"{part.object}, record at offset {part.offsets[0]}: rows are {part.embeddings.shape[1]} wide, "
                f"the first is {facts.width} wide; the outputs of two models cannot be in one file"
            )
        writer.add(part)
        num_rows += len(part.embeddings)
        del part  # or it would stay in memory while the next one is loaded
    (writer or FORMATS[path.suffix](path, facts)).close()
    return facts, num_rows


def _parts(output: Output, manifests: Sequence[ShardManifest]) -> Iterator[Part]:
    for manifest in manifests:
        for piece in in_input_order(manifest.checkpoints, partial(_load, output, manifest)):
            rows = piece.rows
            yield Part(
                embeddings=piece.embeddings,
                ids=rows.ids[piece.start : piece.end],
                object=manifest.object,
                offsets=rows.offsets[piece.start : piece.end],
                lengths=piece.lengths,
            )
            del piece, rows  # as above


def _load(output: Output, manifest: ShardManifest, item: Checkpoint) -> Rows:
    remedy = "run 'inferencerun verify OUTPUT_URI', which finds all damage and says what mends it"
    try:
        rows = read_checkpoint(output.committer, item)
    except Corrupt as error:
        raise Corrupt(f"{error}; {remedy}") from error
    problems = metadata_problems(rows, item, manifest, output.record)
    if problems:
        raise Corrupt(f"{item.key}: {problems[0]}; {remedy}")
    return rows


def _facts(output: Output, manifests: Sequence[ShardManifest], *, width: int) -> Facts:
    model = output.record.model
    return Facts(
        num_records=sum(item.records for manifest in manifests for item in manifest.checkpoints),
        width=width,
        dtype=getattr(torch, model.dtype),
        is_per_token=model.kind == RowKind.PER_TOKEN,
        about={
            "run": output.record.name,
            "generation": output.generation,
            "model": model.name,
            "source": model.source,
            "precision": model.precision,
            "dtype": model.dtype,
            "kind": model.kind,
        },
    )


def _publish(directory: Path, dest: Path) -> list[Path]:
    """Move the finished files to where they belong, DEST itself last: what it needs lies beside it by then."""
    finished = sorted(directory.iterdir(), key=lambda path: (path.name == dest.name, path.name))
    for path in finished:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return [path.replace(dest.with_name(path.name)) for path in finished]
