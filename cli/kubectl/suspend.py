"""`kubectl inferencerun suspend`: drain all workers and start none."""

from __future__ import annotations

import click

from cli.kubectl.change import OVER, change, is_observed, num_active, phase_of, wait_options, wait_until
from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run
from cli.present import json_option, print_json


@click.command(name="suspend")
@run_argument
@wait_options
@json_option
@cluster_options
def command(run_name: str, *, is_waiting: bool, timeout_s: float, as_json: bool, access: Access) -> None:
    """Drain all workers: each commits what it has finished, gives its shard back and ends. Nothing is lost or charged.

    The GPUs are free once the workers have ended (--wait). `resume` goes on from there.
    """
    run = find_run(access, run_name)
    phase, num_workers = phase_of(run), num_active(run)
    if phase in OVER:
        click.echo(f"{run_name} is over already ({phase}); it stays suspended if its spec is changed", err=True)
    run = change(access, run_name, {"spec": {"suspend": True}})
    if is_waiting and phase not in OVER:
        run = wait_until(
            access,
            run_name,
            lambda found: is_observed(found) and phase_of(found) in {"Suspended", *OVER} and not num_active(found),
            timeout_s=timeout_s,
        )
    if as_json:
        print_json({"run": run_name, "suspend": True, "phase": phase_of(run), "active": num_active(run)})
    elif is_waiting:
        click.echo(f"{run_name} is suspended, no worker is left; '{access.command('resume', run_name)}' goes on")
    else:
        click.echo(
            f"{run_name} will be suspended: {num_workers} worker(s) commit what is finished and end; "
            f"'{access.command('resume', run_name)}' goes on"
        )
