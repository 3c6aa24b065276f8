"""`kubectl inferencerun failures`: ended attempts from the store; from the status, workers that ended without a shard."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from cli.failures import failure_fields, print_failures
from cli.kubectl.api import Object
from cli.kubectl.on_store import own_generation, speaking_of
from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run
from cli.output import open_output
from cli.present import generation_option, json_option, print_json, print_table
from contract.errors import InferenceRunError


@click.command(name="failures")
@run_argument
@generation_option
@click.option(
    "--last", "num_last", type=click.IntRange(min=1), default=20, show_default=True, help="How many attempts."
)
@json_option
@cluster_options
def command(run_name: str, *, generation: int | None, num_last: int, as_json: bool, access: Access) -> None:
    """The last ended attempts, newest first: class, evidence, pod, node, and whether they count; then failed shards.

    LOG is where the end of the worker's log lies, below the output's URI. Workers that ended without a shard come last, with
    advice: the status alone knows of them, so they are shown without the store, too.
    """
    run = find_run(access, run_name)
    is_own = generation is None or generation == own_generation(run)
    try:
        with speaking_of(run, generation=generation) as uri:
            fields = failure_fields(open_output(uri, generation))
    except InferenceRunError:
        if is_own and not as_json:
            _print_shardless(shardless(run, holders=()), title="LAST FAILURES")
        raise
    holders = {item["pod"] for item in fields["attempts"]}
    workers = shardless(run, holders=holders) if is_own else []
    fields["attempts"] = fields["attempts"][:num_last]
    if as_json:
        print_json({**fields, "withoutShard": workers})
        return
    print_failures(fields)
    if workers:
        click.echo()
    _print_shardless(workers, title="ENDED WITHOUT A SHARD")


def shardless(run: Object, *, holders: Collection[str]) -> list[dict[str, Any]]:
    """Ended workers of which the status tells, newest first, but for those that have held a shard. Pure."""
    found = (run.get("status") or {}).get("lastFailures") or []
    return [item for item in reversed(found) if item.get("pod") not in holders]


def _print_shardless(workers: list[dict[str, Any]], *, title: str) -> None:
    if workers:
        print_table(
            (title, "CLASS", "POD", "NODE", "EVIDENCE", "ADVICE"),
            (
                [item.get(name) or None for name in ("time", "class", "pod", "node", "evidence", "advice")]
                for item in workers
            ),
            empty="",
        )
