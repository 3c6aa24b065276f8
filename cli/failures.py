"""`inferencerun failures`: the last ended attempts, and why shards failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import click

from cli.output import Output, open_output, read_manifests
from cli.present import generation_option, json_option, output_argument, print_json, print_table, wording
from contract.layout import build_log_key, build_logs_prefix
from contract.manifest import ShardManifest, stamp


@click.command(name="failures")
@output_argument
@generation_option
@click.option(
    "--last", "num_last", type=click.IntRange(min=1), default=20, show_default=True, help="How many attempts."
)
@json_option
def command(output_uri: str, generation: int | None, num_last: int, *, as_json: bool) -> None:
    """The last ended attempts, newest first: class, evidence, pod, node, and whether they count; then failed shards.

    LOG is where the end of the worker's log lies, below the output's URI. Workers that failed before they held a shard
    have no attempt; of them there is the log alone.
    """
    fields = failure_fields(open_output(output_uri, generation))
    fields["attempts"] = fields["attempts"][:num_last]
    if as_json:
        print_json(fields)
    else:
        print_failures(fields)


def failure_fields(output: Output) -> dict[str, Any]:
    """What the store tells of failures, for JSON: all ended attempts, the newest first."""
    manifests = read_manifests(output).readable
    kept = frozenset(item.key for item in output.committer.list(build_logs_prefix(output.generation)))
    return {
        "attempts": ended_attempts(manifests, kept),
        "failedShards": failed_shards(manifests),
        "otherLogs": sorted(kept - log_keys(manifests)),
    }


def print_failures(fields: Mapping[str, Any]) -> None:
    """The same as tables."""
    print_table(
        ("ENDED", "SHARD", "EPOCH", "CLASS", "COUNTS", "POD", "NODE", "EVIDENCE", "LOG"),
        (
            [item[name] for name in ("endedAt", "shard", "epoch", "class", "counted", "pod", "node", "evidence", "log")]
            for item in fields["attempts"]
        ),
        empty="No attempt has ended.",
    )
    if fields["failedShards"]:
        click.echo()
        print_table(
            ("FAILED SHARD", "CLASS", "DETAIL"),
            ((item["shard"], item["class"], wording.get()(item["detail"])) for item in fields["failedShards"]),
            empty="",
        )
    if fields["otherLogs"]:
        click.echo()
        print_table(("LOG OF A WORKER THAT HELD NO SHARD",), ([key] for key in fields["otherLogs"]), empty="")


def log_keys(manifests: Sequence[ShardManifest]) -> frozenset[str]:
    """Keys of the logs of all attempts, kept or not. Pure."""
    return frozenset(
        build_log_key(found.generation, item.pod, item.uid) for found in manifests for item in found.attempts
    )


def ended_attempts(manifests: Sequence[ShardManifest], logs: Collection[str] = ()) -> list[dict[str, Any]]:
    """Attempts of all shards, newest first, each with the key of its log's end if that is among `logs`. Pure."""
    ended = sorted(
        ((attempt, manifest.shard, manifest.generation) for manifest in manifests for attempt in manifest.attempts),
        key=lambda pair: pair[0].ended_at,
        reverse=True,
    )
    return [
        {
            "endedAt": stamp(attempt.ended_at),
            "shard": shard,
            "epoch": attempt.epoch,
            "class": attempt.failure_class.value,
            "counted": attempt.counted,
            "pod": attempt.pod,
            "uid": attempt.uid,
            "node": attempt.node,
            "heldSeconds": attempt.held_seconds,
            "evidence": attempt.evidence,
            "log": key if (key := build_log_key(generation, attempt.pod, attempt.uid)) in logs else None,
        }
        for attempt, shard, generation in ended
    ]


def failed_shards(manifests: Sequence[ShardManifest]) -> list[dict[str, Any]]:
    """Shards that are `failed`, with the reason. Pure."""
    return [
        {"shard": manifest.shard, "class": manifest.failure.failure_class.value, "detail": manifest.failure.detail}
        for manifest in manifests
        if manifest.failure is not None
    ]
