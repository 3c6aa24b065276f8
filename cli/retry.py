"""`inferencerun retry`: set failed shards, or quarantined records, back to pending with a fresh budget."""

from __future__ import annotations

import click

from cli.output import (
    StoredManifest,
    check_is_open,
    new_commit_id,
    open_output,
    read_manifests,
    replace_manifest,
    withdraw_success,
)
from cli.present import json_option, output_argument, print_json, say
from contract.manifest import ShardManifest, ShardStatus
from contract.store.errors import Superseded
from contract.transitions import requeued


@click.command(name="retry")
@output_argument
@click.option("--quarantined", "with_quarantined", is_flag=True, help="Also run the quarantined records again.")
@json_option
def command(output_uri: str, *, with_quarantined: bool, as_json: bool) -> None:
    """Set failed shards back to pending; what they have done stays.

    With --quarantined the quarantined records run again too, after a fix of the model or its limits. Then start the run
    again. Exits 1 when a shard could not be changed because a worker holds it.
    """
    output = open_output(output_uri)
    check_is_open(output)
    wanted = [
        stored
        for _, stored in sorted(read_manifests(output).stored.items())
        if is_to_retry(stored.manifest, with_quarantined=with_quarantined)
    ]
    changed: list[StoredManifest] = []
    held: list[int] = []
    if wanted:
        withdraw_success(output)
    for stored in wanted:
        if stored.manifest.owner is not None:
            held.append(stored.manifest.shard)
            continue
        new = requeued(stored.manifest, commit_id=new_commit_id(), retry_quarantined=with_quarantined)
        try:
            replace_manifest(output, stored, new)
        except Superseded:
            held.append(stored.manifest.shard)
        else:
            changed.append(stored)
    if wanted:
        withdraw_success(output)
    shards = [stored.manifest.shard for stored in changed]
    num_records = sum(len(stored.manifest.quarantined) for stored in changed) if with_quarantined else 0
    if as_json:
        print_json({"retried": shards, "quarantinedRecords": num_records, "held": held})
    else:
        click.echo(f"{len(shards)} shard(s) set back to pending, {num_records} quarantined record(s) among them")
        if held:
            say(
                f"not changed, held by a worker or just changed: {', '.join(map(str, held))}; stop the run, then repeat"
            )
    if held:
        raise click.exceptions.Exit(1)


def is_to_retry(manifest: ShardManifest, *, with_quarantined: bool) -> bool:
    """Whether there is anything to run again. Pure."""
    return manifest.status is ShardStatus.FAILED or (with_quarantined and bool(manifest.quarantined))
