"""`inferencerun shards`: every shard, who holds it and how far it is."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from cli.output import Manifests, current_time, open_output, read_manifests
from cli.present import generation_option, json_option, output_argument, print_json, print_table
from cli.status import is_stale, last_commit_at
from cli.texts import duration_text
from contract.manifest import ShardManifest, stamp
from contract.plan import Shard
from contract.ranges import count


@click.command(name="shards")
@output_argument
@generation_option
@json_option
def command(output_uri: str, generation: int | None, *, as_json: bool) -> None:
    """Every shard of the plan: status, epoch, owner, records, restarts, last commit.

    Exits 1 when a manifest cannot be read.
    """
    output = open_output(output_uri, generation)
    plan, manifests, now = output.plan, read_manifests(output), current_time()
    unreadable = {item.shard for item in manifests.unreadable}
    rows = [
        _fields(shard, _manifest(manifests, shard), now, is_unreadable=shard.shard in unreadable)
        for shard in plan.shards
    ]
    if as_json:
        print_json({"shards": rows})
    else:
        print_table(
            (
                "SHARD",
                "STATUS",
                "EPOCH",
                "OWNER",
                "NODE",
                "DONE",
                "OF",
                "QUARANTINED",
                "RESTARTS",
                "COUNTED",
                "LAST COMMIT",
            ),
            (_cells(row) for row in rows),
            empty="The plan has no shard: the input is empty.",
        )
    if unreadable:
        raise click.exceptions.Exit(1)


def _manifest(manifests: Manifests, shard: Shard) -> ShardManifest | None:
    found = manifests.stored.get(shard.shard)
    return None if found is None else found.manifest


def _fields(shard: Shard, manifest: ShardManifest | None, now: datetime, *, is_unreadable: bool) -> dict[str, Any]:
    place: dict[str, Any] = {"shard": shard.shard, "object": shard.object, "start": shard.start, "end": shard.end}
    if manifest is None:
        return {**place, "status": "unreadable" if is_unreadable else "unclaimed"}
    owner, failure, seen_at = manifest.owner, manifest.failure, last_commit_at(manifest)
    return {
        **place,
        "status": manifest.status.value,
        "stale": is_stale(manifest, now),
        "epoch": manifest.epoch,
        "owner": None if owner is None else {"pod": owner.pod, "uid": owner.uid, "node": owner.node},
        "done": count(manifest.done),
        "records": manifest.records,
        "quarantined": len(manifest.quarantined),
        "checkpoints": len(manifest.checkpoints),
        "restarts": {"total": manifest.restarts.total, "counted": manifest.restarts.counted},
        "lastCommitAt": stamp(seen_at),
        "secondsSinceCommit": None if seen_at is None else round((now - seen_at).total_seconds()),
        "notBefore": stamp(manifest.not_before),
        "failure": None if failure is None else {"class": failure.failure_class.value, "detail": failure.detail},
    }


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    if "epoch" not in row:
        return (row["shard"], row["status"], *(None,) * 9)
    owner = row["owner"] or {"pod": None, "node": None}
    since_s = row["secondsSinceCommit"]
    return (
        row["shard"],
        f"{row['status']}, stale" if row["stale"] else row["status"],
        row["epoch"],
        owner["pod"],
        owner["node"],
        row["done"],
        row["records"],
        row["quarantined"],
        row["restarts"]["total"],
        row["restarts"]["counted"],
        None if since_s is None else f"{duration_text(since_s)} ago",
    )
