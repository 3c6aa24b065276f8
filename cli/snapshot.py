"""`inferencerun snapshot`: take or list named, consistent cuts over all shards.

Shards do not depend on each other, so any set of their versions is a state without an effect before its cause. Beyond
that the cut is taken again until no ETag moves between two listings: then all versions stood there at one instant, and
the snapshot says `instant`. A run that commits faster than its manifests can be read never stands still; after
MAX_ROUNDS the snapshot says `perShard`: each version was current when it was read.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from cli.output import (
    Manifests,
    Output,
    StoredManifest,
    current_time,
    list_manifests,
    open_output,
    read_shards,
    read_snapshots,
)
from cli.present import generation_option, json_option, output_argument, print_json, print_table
from cli.snapshots import Cut, Snapshot, SnapshotShard, to_fields, to_json
from contract.errors import Corrupt, SpecError
from contract.layout import build_snapshot_key
from contract.ranges import count
from contract.store.errors import Superseded

MAX_ROUNDS = 5
"""Each reads only what moved since the one before, so a few suffice or none would."""


@click.command(name="snapshot")
@output_argument
@click.argument("name", required=False)
@click.option("--list", "is_list", is_flag=True, help="List the snapshots instead.")
@generation_option
@json_option
def command(output_uri: str, name: str | None, generation: int | None, *, is_list: bool, as_json: bool) -> None:
    """Name a consistent cut over all shards, or list the cuts there are.

    NAME is never reused: a snapshot is written once and never changed.
    """
    if is_list == (name is not None):
        raise click.UsageError("give a NAME, or --list")
    output = open_output(output_uri, generation)
    snapshots = read_snapshots(output) if name is None else (take(output, name, now=current_time()),)
    if as_json:
        print_json({"snapshots": [_overview(item) for item in snapshots]} if is_list else to_fields(snapshots[0]))
    else:
        print_table(
            ("NAME", "CREATED", "CUT", "SHARDS", "CHECKPOINTS", "RECORDS"),
            (tuple(_overview(item).values()) for item in snapshots),
            empty="There is no snapshot.",
        )


def take(output: Output, name: str, *, now: datetime) -> Snapshot:
    """Write a new snapshot.

    Raises:
        SpecError: the name is taken, or no name.
        Corrupt: a manifest cannot be read; repair it first.
    """
    try:
        key = build_snapshot_key(output.generation, name)
    except ValueError as error:
        raise SpecError(str(error)) from error
    manifests, cut = read_cut(output)
    if manifests.unreadable:
        raise Corrupt(manifests.unreadable[0].message)
    snapshot = snapshot_of(manifests, name=name, generation=output.generation, cut=cut, now=now)
    try:
        output.committer.create_immutable(key, to_json(snapshot))
    except Superseded as error:
        raise SpecError(f"{output.uri}: there is a snapshot {name!r} already; choose another name") from error
    return snapshot


def read_cut(output: Output) -> tuple[Manifests, Cut]:
    """All manifests, and what holds between them."""
    stored: dict[int, StoredManifest] = {}
    listed = list_manifests(output)
    for _ in range(MAX_ROUNDS):
        moved = [number for number, item in listed.items() if number not in stored or stored[number].etag != item.etag]
        found = read_shards(output, sorted(moved))
        if found.unreadable:
            return found, Cut.PER_SHARD
        stored.update(found.stored)
        listed = list_manifests(output)
        if {number: item.etag for number, item in listed.items()} == {n: item.etag for n, item in stored.items()}:
            return Manifests(stored=stored, unreadable=()), Cut.INSTANT
    return Manifests(stored=stored, unreadable=()), Cut.PER_SHARD


def snapshot_of(manifests: Manifests, *, name: str, generation: int, cut: Cut, now: datetime) -> Snapshot:
    """The snapshot of these manifests. Pure."""
    shards = (
        SnapshotShard(
            shard=number,
            etag=stored.etag,
            commit_id=stored.manifest.commit_id,
            epoch=stored.manifest.epoch,
            status=stored.manifest.status,
            records=count(stored.manifest.done),
            checkpoints=tuple(item.key for item in sorted(stored.manifest.checkpoints, key=lambda item: item.first)),
        )
        for number, stored in sorted(manifests.stored.items())
    )
    return Snapshot(name=name, generation=generation, created_at=now, cut=cut, shards=tuple(shards))


def _overview(snapshot: Snapshot) -> dict[str, Any]:
    shown = {name: value for name, value in to_fields(snapshot).items() if name in ("name", "createdAt", "cut")}
    return {
        **shown,
        "shards": len(snapshot.shards),
        "checkpoints": len(snapshot.keys),
        "records": snapshot.records,
    }
