"""`inferencerun verify`: read every object again and say what is off; `--requeue` sets the damage back to pending."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cli.output import (
    Manifests,
    Output,
    check_is_open,
    new_commit_id,
    open_output,
    read_manifests,
    replace_manifest,
    withdraw_success,
)
from cli.present import generation_option, json_option, output_argument, print_json, say
from cli.texts import printable, size_text
from cli.verification import Report, verify
from contract.plan import InputObject, Shard
from contract.store.errors import Superseded
from contract.store.open import open_store, split_object_uri
from contract.store.protocol import ObjectStore
from contract.transitions import requeued
from worker.records.open import read_records
from worker.records.record import Record
from worker.records.source import StoreSource


@click.command(name="verify")
@output_argument
@generation_option
@click.option("--no-input", is_flag=True, help="Check the output in itself; do not read the input.")
@click.option("--requeue", "is_requeue", is_flag=True, help="Set the records of corrupt checkpoints back to pending.")
@json_option
def command(output_uri: str, generation: int | None, *, no_input: bool, is_requeue: bool, as_json: bool) -> None:
    """Read every object again: checksums, shapes, and every record of the input exactly once.

    Exits 1 and lists every problem with its remedy when anything is off. A run in progress is verified for what it has.
    """
    output = open_output(output_uri, generation)
    if is_requeue:
        check_is_open(output)
    manifests = read_manifests(output)
    with _progress(output.plan.total_bytes) as on_shard:
        report = verify(output, manifests, open_records=None if no_input else Input(output).records, on_shard=on_shard)
    held = requeue(output, manifests, report) if is_requeue else []
    if as_json:
        requeued_keys = sorted(key for shard, keys in report.corrupt.items() if shard not in held for key in keys)
        requeue_fields = {"requeued": requeued_keys, "held": held} if is_requeue else {}
        print_json({"generation": output.generation, **report.to_fields(), **requeue_fields})
    else:
        _print_report(report)
        if is_requeue:
            say(
                f"requeued: the corrupt checkpoints of {len(report.corrupt.keys() - held)} shard(s); start the run again"
            )
        for shard in held:
            say(f"not requeued: shard {shard} is held by a worker or has just changed; stop the run, then repeat")
    if report.problems:
        raise click.exceptions.Exit(1)


@dataclass(slots=True)
class Input:
    """Reads shards of the input again, as the workers did."""

    output: Output
    _stores: dict[str, ObjectStore] = field(default_factory=dict)
    _objects: dict[str, InputObject] = field(default_factory=dict)

    def records(self, shard: Shard) -> Iterator[Record]:
        """All records of the shard's range. Raises InvalidInput when the object is damaged or not the planned one."""
        plan, identity = self.output.plan, self.output.record.input
        if not self._objects:
            self._objects = {item.uri: item for item in plan.objects}
        root, key = split_object_uri(shard.object)
        if root not in self._stores:
            self._stores[root] = open_store(root)
        planned = self._objects[shard.object]
        source = StoreSource(self._stores[root], key, uri=planned.uri, size=planned.size, etag=planned.etag)
        return read_records(
            source,
            fmt=plan.format,
            compression=shard.compression,
            start=shard.start,
            end=shard.end,
            id_field=identity.id_field,
            value_field=identity.value_field,
        )


def requeue(output: Output, manifests: Manifests, report: Report) -> list[int]:
    """Set the corrupt checkpoints' records, and only those, back to pending; withdraw an index that does not hold.

    Returns:
        Shards that could not be changed: a worker holds them, or they changed since they were read.
    """
    if not report.corrupt and not report.is_index_wrong:
        return []
    withdraw_success(output)
    held = []
    for shard, keys in sorted(report.corrupt.items()):
        current = manifests.stored[shard]
        if current.manifest.owner is not None:
            held.append(shard)
            continue
        new = requeued(current.manifest, commit_id=new_commit_id(), lost_keys=frozenset(keys))
        try:
            replace_manifest(output, current, new)
        except Superseded:
            held.append(shard)
    withdraw_success(output)
    return held


@contextmanager
def _progress(total_bytes: int) -> Iterator[Callable[[Shard], None]]:
    """A bar on standard error, when that is a terminal."""
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("verify", total=total_bytes)
        yield lambda shard: progress.advance(task, shard.end - shard.start)


def _print_report(report: Report) -> None:
    for item in report.problems:
        place = f", {item.place}" if item.place else ""
        say(f"{printable(item.object)}{printable(place) if place else ''}: {printable(item.problem)}")
        say(f"    {item.remedy}")
    verdict = "OFF" if report.problems else "fine" if report.is_finished else "fine so far"
    click.echo(
        f"{verdict}: {len(report.problems)} problem(s) in {report.shards} shards and {report.checkpoints} checkpoints; "
        f"{report.records} records and {report.quarantined} quarantined of {report.input_records} input records, "
        f"{size_text(report.bytes)}; {report.unnamed_objects} unnamed object(s)"
    )
