"""`kubectl inferencerun scale`: change the number of workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from cli.kubectl.change import OVER, change, is_observed, num_active, phase_of, wait_options, wait_until
from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run
from cli.present import json_option, print_json


@click.command(name="scale")
@run_argument
@click.argument("count", type=click.IntRange(min=0))
@wait_options
@json_option
@cluster_options
def command(run_name: str, count: int, *, is_waiting: bool, timeout_s: float, as_json: bool, access: Access) -> None:
    """Set the number of workers to COUNT. Surplus workers drain: what they have finished stays; new ones take free shards.

    The same as `kubectl scale irun/NAME --replicas COUNT`. There are never more workers than shards with work left.
    """
    before = int((find_run(access, run_name)["spec"].get("workers") or {}).get("count") or 0)
    change(access, run_name, {"spec": {"replicas": count}}, subresource="scale")
    run = find_run(access, run_name)
    if is_waiting:
        run = wait_until(access, run_name, lambda found: is_at_scale(found, count), timeout_s=timeout_s)
    if as_json:
        print_json(
            {"run": run_name, "before": before, "count": count, "phase": phase_of(run), "active": num_active(run)}
        )
    else:
        click.echo(f"{run_name}: {effect_text(before, count)}")


def is_at_scale(run: Mapping[str, Any], count: int) -> bool:
    """Whether as many workers are there as `count` and the shards left allow. Pure."""
    workers = (run.get("status") or {}).get("workers") or {}
    is_reached = num_active(run) == min(count, int(workers.get("desired") or 0))
    return is_observed(run) and (is_reached or phase_of(run) in OVER)


def effect_text(before: int, count: int) -> str:
    """What a change of scale does. Pure."""
    if count == before:
        return f"{count} worker(s), as before"
    if count > before:
        return f"{before} -> {count} workers: up to {count - before} new one(s) take free shards"
    return f"{before} -> {count} workers: {before - count} commit what is finished, give their shards back and end"
