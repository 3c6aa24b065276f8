"""`kubectl inferencerun status`: one screen about a run, from its resource, its pods and its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from cli.kubectl.api import Object
from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run, pods_of
from cli.kubectl.shard_watch import ShardWatch
from cli.kubectl.workers import COLUMNS, WorkerRow, worker_rows
from cli.output import current_time
from cli.present import json_option, print_json, print_pairs, print_table
from cli.texts import duration_text, size_text
from contract.manifest import parse_stamp
from controller.pods import read_pod

STORE_PATIENCE_S = 5.0
"""A store that has not answered by then is left out of the screen."""
MAX_SHARDS_UNASKED = 1000
"""So many manifests are read in two seconds or so; of larger runs only when asked to."""
FAILURES_SHOWN = 5
UNSEEN_S = 10.0
"""A controller that is at work has looked at a new run by then."""


@click.command(name="status")
@run_argument
@click.option(
    "--shards/--no-shards",
    "with_shards",
    default=None,
    help=f"Read from the store which shard each worker holds; by default for up to {MAX_SHARDS_UNASKED:,} shards.",
)
@json_option
@cluster_options
def command(run_name: str, *, with_shards: bool | None, as_json: bool, access: Access) -> None:
    """One screen: phase, progress, rate, workers, conditions, last failures with advice.

    What it says of phase and progress is the controller's word, some seconds old; `shards` reads the store itself.
    """
    run = find_run(access, run_name)
    pods = [read_pod(item) for item in pods_of(access, run)]
    num_shards = ((run.get("status") or {}).get("shards") or {}).get("total") or 0
    watch = None
    if num_shards and (num_shards <= MAX_SHARDS_UNASKED if with_shards is None else with_shards):
        watch = ShardWatch(run)
        watch.start(every_s=None)
        watch.wait(STORE_PATIENCE_S)
    now = current_time()
    workers = worker_rows(pods, watch.manifests if watch else None, now=now)
    problem = watch.problem if watch else ""
    if as_json:
        print_json({**status_fields(run, workers), "storeProblem": problem or None})
        return
    print_pairs(status_lines(run, now=now))
    neglect = neglect_text(run, now=now, doctor=access.command("doctor", run_name))
    if neglect:
        click.echo(f"\n{neglect}")
    _print_workers(workers, now)
    if problem:
        click.echo(f"\nShards are not shown: {problem}")
    _print_conditions(run, now)
    _print_failures(run, now)


def status_fields(run: Object, workers: Sequence[WorkerRow]) -> dict[str, Any]:
    """For JSON: the status as the resource has it, without what only the controller reads, and the workers. Pure."""
    status = {name: value for name, value in (run.get("status") or {}).items() if name != "memory"}
    return {
        "run": run["metadata"]["name"],
        "namespace": run["metadata"]["namespace"],
        "output": ((run.get("spec") or {}).get("output") or {}).get("uri"),
        "suspend": bool((run.get("spec") or {}).get("suspend")),
        "status": status,
        "workers": [item.to_fields() for item in workers],
    }


def status_lines(run: Object, *, now: datetime) -> list[tuple[str, object]]:
    """The first part of the screen. Pure."""
    metadata, spec, status = run["metadata"], run.get("spec") or {}, run.get("status") or {}
    lines: list[tuple[str, object]] = [
        (
            "run",
            f"{metadata['name']}, namespace {metadata['namespace']}, created {ago(metadata['creationTimestamp'], now)}",
        ),
        ("output", (spec.get("output") or {}).get("uri")),
        ("phase", phase_text(run)),
    ]
    progress, shards, workers = (status.get(name) or {} for name in ("progress", "shards", "workers"))
    if not progress:
        return lines
    restarts = status.get("restarts") or {}
    return [
        *lines,
        ("progress", f"{progress.get('percent')} % of {size_text(progress.get('totalBytes') or 0)}"),
        ("records", f"{progress.get('records')} done, {status.get('quarantined')} of them quarantined"),
        ("rate", f"{progress.get('recordsPerSecond')} records/s, ETA {duration_text(progress.get('etaSeconds'))}"),
        ("shards", ", ".join(f"{shards.get(name)} {name}" for name in ("total", "complete", "running", "failed"))),
        ("workers", ", ".join(f"{workers.get(name)} {name}" for name in ("desired", "active", "ready"))),
        ("restarts", _restarts_text(restarts)),
        ("goodput", status.get("goodput")),
    ]


def phase_text(run: Object) -> str:
    """Phase and why, or what stands in the way of one. Pure."""
    metadata, status = run["metadata"], run.get("status") or {}
    phase = status.get("phase") or "no status yet: no controller has looked at it"
    if metadata.get("deletionTimestamp"):
        phase = f"{phase}, being deleted"
    elif status and status.get("observedGeneration", 0) < metadata.get("generation", 0):
        phase = f"{phase} (the last change of the spec has not been looked at yet)"
    return f"{phase}: {status['message']}" if status.get("message") else phase


def neglect_text(run: Object, *, now: datetime, doctor: str) -> str:
    """That no controller has looked at the run, with the command that finds out why; empty for its first UNSEEN_S. Pure."""
    created_at = parse_stamp(run["metadata"]["creationTimestamp"])
    age_s = (now - created_at).total_seconds() if created_at is not None else 0.0
    if (run.get("status") or {}).get("observedGeneration") is not None or age_s < UNSEEN_S:
        return ""
    return f"Nothing has looked at the run in {duration_text(age_s)}: is there a controller? '{doctor}' finds out."


def ago(text: str | None, now: datetime) -> str:
    """A stamp of the API as `3 min 05 s ago`; `-` when there is none. Pure."""
    at = parse_stamp(text) if text else None
    return "-" if at is None else f"{duration_text(max(0.0, (now - at).total_seconds()))} ago"


def worker_cells(row: WorkerRow, now: datetime) -> tuple[object, ...]:
    """A worker as cells under COLUMNS. Pure."""
    rate = None if row.records_per_s is None else f"{row.records_per_s:.1f}"
    age = None if row.last_commit_at is None else f"{duration_text((now - row.last_commit_at).total_seconds())} ago"
    return (row.pod, row.state, row.node, row.shard, row.records, rate, age)


def _restarts_text(restarts: Mapping[str, Any]) -> str:
    by_class = ", ".join(f"{number} {name}" for name, number in (restarts.get("byClass") or {}).items())
    total = f"{restarts.get('total', 0)}, of which {restarts.get('counted', 0)} count"
    return f"{total}: {by_class}" if by_class else total


def _print_workers(workers: Sequence[WorkerRow], now: datetime) -> None:
    click.echo()
    print_table(COLUMNS, (worker_cells(row, now) for row in workers), empty="No worker pod exists.")


def _print_conditions(run: Object, now: datetime) -> None:
    conditions = (run.get("status") or {}).get("conditions") or []
    if not conditions:
        return
    click.echo()
    print_table(
        ("CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE"),
        (
            (
                item["type"],
                item["status"],
                ago(item.get("lastTransitionTime"), now),
                item.get("reason"),
                item.get("message") or None,
            )
            for item in conditions
        ),
        empty="",
    )


def _print_failures(run: Object, now: datetime) -> None:
    failures = list(reversed((run.get("status") or {}).get("lastFailures") or []))[:FAILURES_SHOWN]
    if not failures:
        return
    click.echo()
    print_table(
        ("LAST FAILURES", "CLASS", "POD", "NODE", "EVIDENCE", "ADVICE"),
        (
            (
                ago(item.get("time"), now),
                *(item.get(name) or None for name in ("class", "pod", "node", "evidence", "advice")),
            )
            for item in failures
        ),
        empty="",
    )
