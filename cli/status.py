"""`inferencerun status`: where a run stands, from its manifests alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import click

from cli.output import Manifests, current_time, is_finished, open_output, read_manifests
from cli.present import generation_option, json_option, output_argument, print_json, print_pairs
from cli.texts import duration_text, size_text
from contract.manifest import ShardManifest, ShardStatus
from contract.names import Phase
from contract.plan import Plan
from contract.ranges import count

STALE_SECONDS = 600
"""A running shard without a commit for so long is called stale: twice the longest profile's time threshold."""
RATE_WINDOW_SECONDS = 600
"""The rate is that of the checkpoints of the last ten minutes: long enough to hold several, short enough to be current."""


@click.command(name="status")
@output_argument
@generation_option
@json_option
def command(output_uri: str, generation: int | None, *, as_json: bool) -> None:
    """Where a run stands: phase, progress, shards, workers, restarts, ETA.

    Exits 1 when a manifest cannot be read.
    """
    output = open_output(output_uri, generation)
    facts = {
        "output": output.uri,
        "run": output.record.name,
        "generation": output.generation,
        "archived": output.record.is_archived,
    }
    if output.stored_plan is None:
        fields = {**facts, "phase": Phase.PLANNING.value}
    else:
        manifests = read_manifests(output)
        has_success = is_finished(output)
        fields = {**facts, **summary(output.plan, manifests, has_success=has_success, now=current_time())}
    if as_json:
        print_json(fields)
    else:
        print_pairs(_lines(fields))
    if fields.get("unreadable"):
        raise click.exceptions.Exit(1)


def summary(plan: Plan, manifests: Manifests, *, has_success: bool, now: datetime) -> dict[str, Any]:
    """What there is to say of a planned generation. Pure."""
    all_readable = manifests.readable
    num_shards = len(plan.shards)
    by_status = Counter(item.status for item in all_readable)
    num_unclaimed = num_shards - len(all_readable) - len(manifests.unreadable)
    num_done = sum(count(item.done) for item in all_readable)
    bytes_done = sum(_bytes_done(item) for item in all_readable)
    restarts: Counter[str] = Counter()
    for item in all_readable:
        restarts.update(dict(item.restarts.by_class))
    records_per_s = _records_per_s(all_readable, now)
    is_running = by_status[ShardStatus.RUNNING] > 0
    return {
        "phase": _phase(by_status, num_shards=num_shards, has_success=has_success).value,
        "records": num_done,
        "quarantined": sum(len(item.quarantined) for item in all_readable),
        "bytes": bytes_done,
        "totalBytes": plan.total_bytes,
        "percent": f"{100 * bytes_done / plan.total_bytes if plan.total_bytes else 100:.1f}",
        "recordsPerSecond": f"{records_per_s:.1f}",
        "etaSeconds": _eta_s(num_done, bytes_done, plan.total_bytes, records_per_s) if is_running else None,
        "shards": {
            "total": num_shards,
            "unclaimed": num_unclaimed,
            **{status.value: by_status[status] for status in ShardStatus},
        },
        "incomplete": _numbers(plan, manifests, {ShardStatus.PENDING, ShardStatus.RUNNING, ShardStatus.FAILED, None}),
        "orphaned": _numbers(plan, manifests, {ShardStatus.FAILED}),
        "stale": [item.shard for item in all_readable if is_stale(item, now)],
        "unreadable": [item.shard for item in manifests.unreadable],
        "workers": [
            {"pod": item.owner.pod, "node": item.owner.node, "shard": item.shard, "epoch": item.epoch}
            for item in all_readable
            if item.owner is not None
        ],
        "restarts": {
            "total": sum(item.restarts.total for item in all_readable),
            "counted": sum(item.restarts.counted for item in all_readable),
            "byClass": dict(sorted(restarts.items())),
        },
    }


def last_commit_at(manifest: ShardManifest) -> datetime | None:
    """When the present owner last showed progress: its claim or the newest checkpoint. Pure."""
    instants = [item.created_at for item in manifest.checkpoints]
    if manifest.claimed_at is not None:
        instants.append(manifest.claimed_at)
    return max(instants, default=None)


def is_stale(manifest: ShardManifest, now: datetime) -> bool:
    """Whether the shard is held without a commit for STALE_SECONDS. Pure."""
    seen_at = last_commit_at(manifest)
    is_silent = seen_at is None or now - seen_at > timedelta(seconds=STALE_SECONDS)
    return manifest.status is ShardStatus.RUNNING and is_silent


def _phase(by_status: Counter[ShardStatus], *, num_shards: int, has_success: bool) -> Phase:
    if has_success:
        return Phase.SUCCEEDED
    if by_status[ShardStatus.RUNNING]:
        return Phase.RUNNING
    if by_status[ShardStatus.COMPLETE] + by_status[ShardStatus.FAILED] < num_shards:
        return Phase.PENDING
    return Phase.FAILED if by_status[ShardStatus.FAILED] else Phase.FINALIZING


def _bytes_done(manifest: ShardManifest) -> int:
    # A range that ends in the middle of a record, or holds quarantined records only, commits fewer bytes than it has.
    return manifest.end - manifest.start if manifest.status is ShardStatus.COMPLETE else manifest.bytes_done


def _records_per_s(manifests: Sequence[ShardManifest], now: datetime) -> float:
    since = now - timedelta(seconds=RATE_WINDOW_SECONDS)
    recent = [item for manifest in manifests for item in manifest.checkpoints if item.created_at >= since]
    starts = [max(since, item.created_at - timedelta(seconds=item.seconds)) for item in recent]
    elapsed_s = (now - min(starts, default=now)).total_seconds()
    return sum(item.records for item in recent) / elapsed_s if elapsed_s > 0 else 0.0


def _eta_s(num_done: int, bytes_done: int, total_bytes: int, records_per_s: float) -> int | None:
    """None while nothing tells the rate. The records still to come are guessed from the bytes of those done."""
    if not bytes_done or not records_per_s:
        return None
    return round((total_bytes - bytes_done) * (num_done / bytes_done) / records_per_s)


def _numbers(plan: Plan, manifests: Manifests, statuses: set[ShardStatus | None]) -> list[int]:
    """Shards in these statuses; None stands for never claimed or unreadable."""
    known = {shard: item.manifest.status for shard, item in manifests.stored.items()}
    return [item.shard for item in plan.shards if known.get(item.shard) in statuses]


def _lines(fields: dict[str, Any]) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [
        ("run", f"{fields['run']}, generation {fields['generation']}{', archived' if fields['archived'] else ''}"),
        ("output", fields["output"]),
        ("phase", fields["phase"]),
    ]
    if "shards" not in fields:
        return lines
    shards, restarts = fields["shards"], fields["restarts"]
    lines += [
        ("progress", f"{fields['percent']} % of {size_text(fields['totalBytes'])}"),
        ("records", f"{fields['records']} done, {fields['quarantined']} quarantined"),
        *_rate_line(fields),
        ("shards", ", ".join(f"{number} {name}" for name, number in shards.items() if number or name == "total")),
        ("incomplete", _few(fields["incomplete"])),
        ("failed for good", _few(fields["orphaned"])),
        ("stale", _few(fields["stale"])),
        ("restarts", f"{restarts['total']}, of which {restarts['counted']} count"),
        *((f"  {name}", number) for name, number in restarts["byClass"].items()),
        *((f"  {item['pod']}", f"shard {item['shard']} on {item['node']}") for item in fields["workers"]),
    ]
    if fields["unreadable"]:
        lines.append(
            ("unreadable", f"{_few(fields['unreadable'])}: run 'inferencerun repair {fields['output']} --shard N'")
        )
    return lines


def _rate_line(fields: dict[str, Any]) -> list[tuple[str, object]]:
    if not fields["workers"]:
        return []
    return [("rate", f"{fields['recordsPerSecond']} records/s, ETA {duration_text(fields['etaSeconds'])}")]


def _few(numbers: list[int]) -> str:
    """At most ten shard numbers; `-` for none."""
    shown = ", ".join(str(number) for number in numbers[:10])
    return f"{shown} and {len(numbers) - 10} more" if len(numbers) > 10 else shown or "-"
