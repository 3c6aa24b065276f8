"""`kubectl inferencerun results`: where the rows are, how many there are by now, and how to load them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from cli.kubectl.on_store import explained, whose
from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run, output_uri
from cli.output import is_finished, open_output, read_manifests
from cli.present import generation_option, json_option, print_json, print_pairs
from cli.texts import size_text
from contract.layout import build_data_prefix, build_index_key
from contract.manifest import ShardManifest, ShardStatus
from contract.ranges import count


@click.command(name="results")
@run_argument
@generation_option
@json_option
@cluster_options
def command(run_name: str, *, generation: int | None, as_json: bool, access: Access) -> None:
    """Where the rows are, how many there are, and three lines that load them. Before the end: what is there by now.

    Rows that are committed never change, so they may be used while the run goes on.
    """
    run = find_run(access, run_name)
    uri = output_uri(run)
    with explained(run):
        output = open_output(uri, generation)
        manifests = read_manifests(output).readable if output.stored_plan is not None else ()
        is_complete = is_finished(output)
    files = {
        "index": f"{uri}/{build_index_key(output.generation)}" if is_complete else None,
        "data": f"{uri}/{build_data_prefix(output.generation)}",
    }
    num_shards = len(output.stored_plan.shards) if output.stored_plan is not None else 0
    is_current = output.generation == output.record.generation
    fields = {
        "run": run_name,
        "generation": output.generation,
        "openedBy": output.record.name if is_current else None,
        "complete": is_complete,
        **files,
        **summary(manifests, num_shards=num_shards),
    }
    others = whose(run, output.record) if is_current else ""
    first = next((item.key for found in manifests for item in found.checkpoints), None)
    if as_json:
        print_json(fields)
        return
    print_pairs(result_lines(fields, others=others))
    click.echo()
    if first is None:
        click.echo("No row is committed yet.")
        return
    click.echo("Load one checkpoint:\n")
    for line in snippet(uri, first):
        click.echo(f"    {line}")
    options = ("" if is_complete else " --partial") + ("" if is_current else f" --generation {output.generation}")
    click.echo(f"\nAll rows in one file, in input order: {access.command('export', run_name)} rows.npy{options}")


def summary(manifests: Sequence[ShardManifest], *, num_shards: int) -> dict[str, Any]:
    """Counts. Pure."""
    checkpoints = [item for found in manifests for item in found.checkpoints]
    return {
        "records": sum(count(found.done) for found in manifests),
        "quarantined": sum(len(found.quarantined) for found in manifests),
        "checkpoints": len(checkpoints),
        "bytes": sum(item.bytes for item in checkpoints),
        "shards": num_shards,
        "completeShards": sum(found.status is ShardStatus.COMPLETE for found in manifests),
    }


def result_lines(fields: dict[str, Any], *, others: str) -> list[tuple[str, object]]:
    """What there is to say; `others` says whose rows they are when they are not this run's. Pure."""
    shards = f"{fields['completeShards']} of {fields['shards']} shards"
    return [
        ("rows of", others or f"run {fields['run']}, generation {fields['generation']}"),
        ("complete", "yes" if fields["complete"] else f"no: {shards} are"),
        ("records", f"{fields['records']} with rows, {fields['quarantined']} quarantined (without)"),
        ("data", f"{fields['data']}: {fields['checkpoints']} checkpoints, {size_text(fields['bytes'])}"),
        ("index", fields["index"] or "not written yet: it comes with the last shard"),
    ]


def snippet(uri: str, key: str) -> list[str]:
    """Three lines of Python that load a checkpoint of this output. Pure."""
    scheme, _, rest = uri.partition("://")
    loaded = 'rows = torch.load({}, weights_only=True)  # rows["embeddings"], rows["sequence_ids"], rows["metadata"]'
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        path = f"{prefix}/{key}".lstrip("/")
        return [
            "import boto3, io, torch",
            f'body = boto3.client("s3").get_object(Bucket="{bucket}", Key="{path}")["Body"].read()',
            loaded.format("io.BytesIO(body)"),
        ]
    if scheme == "file":
        return ["import torch", f'path = "{rest}/{key}"', loaded.format("path")]
    return [
        "import io, torch",
        "from contract.store.open import open_store",
        loaded.format(f'io.BytesIO(open_store("{uri}").get("{key}").body)'),
    ]
