"""`kubectl inferencerun resume`: go on after suspend."""

from __future__ import annotations

import click

from cli.kubectl.change import OVER, change, is_observed, num_active, num_ready, phase_of, wait_options, wait_until
from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run
from cli.present import json_option, print_json


@click.command(name="resume")
@run_argument
@wait_options
@json_option
@cluster_options
def command(run_name: str, *, is_waiting: bool, timeout_s: float, as_json: bool, access: Access) -> None:
    """Start workers again; they go on where the last checkpoints end. With --wait until one runs, or the run is over."""
    find_run(access, run_name)
    run = change(access, run_name, {"spec": {"suspend": False}})
    if is_waiting:
        run = wait_until(
            access,
            run_name,
            lambda found: is_observed(found) and (phase_of(found) in OVER or num_ready(found) > 0),
            timeout_s=timeout_s,
        )
    if as_json:
        print_json({"run": run_name, "suspend": False, "phase": phase_of(run), "active": num_active(run)})
    elif is_waiting:
        click.echo(f"{run_name} goes on: {phase_of(run)}, {num_ready(run)} worker(s) at work")
    else:
        count = run["spec"].get("workers", {}).get("count", 1)
        click.echo(
            f"{run_name} will go on with up to {count} worker(s); '{access.command('watch', run_name)}' shows it"
        )
