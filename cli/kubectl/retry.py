"""`kubectl inferencerun retry`: what has failed runs again, and a run that has given up goes on."""

from __future__ import annotations

from typing import Any

import click

from cli import retry as on_output
from cli.kubectl.change import change, phase_of, wait_options, wait_until
from cli.kubectl.on_store import call
from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run
from cli.output import current_time
from cli.present import json_option
from contract.errors import SpecError
from contract.manifest import stamp
from contract.names import ANNOTATION_RETRY, Phase

GIVEN_UP = frozenset({Phase.FAILED.value, Phase.CIRCUIT_OPEN.value})


@click.command(name="retry")
@run_argument
@click.option("--quarantined", "with_quarantined", is_flag=True, help="Also run the quarantined records again.")
@click.option(
    "--only-wake",
    is_flag=True,
    help="Leave shards as they are, and the store alone: close breakers, start workers now.",
)
@wait_options
@json_option
@cluster_options
def command(
    run_name: str,
    *,
    with_quarantined: bool,
    only_wake: bool,
    is_waiting: bool,
    timeout_s: float,
    as_json: bool,
    access: Access,
) -> None:
    """Set failed shards back to pending, then tell the controller to go on.

    It closes the run's circuit breakers, forgets waiting times and takes a failed run up again. What is done stays done.
    First mend what made it fail: `doctor` and `failures` say what that was.
    """
    run = find_run(access, run_name)
    if only_wake and with_quarantined:
        raise click.UsageError("--only-wake leaves the store alone, so it cannot go with --quarantined")
    if phase_of(run) == Phase.SUCCEEDED and not (with_quarantined or only_wake):
        raise SpecError(f"{run_name} has succeeded: nothing is left to retry, but for --quarantined records")
    held: click.exceptions.Exit | None = None
    if not only_wake:
        try:
            call(on_output.command, run, with_quarantined=with_quarantined, as_json=as_json)
        except click.exceptions.Exit as error:  # a worker holds a shard: the others are set back, and may begin
            held = error
    body: dict[str, Any] = {"metadata": {"annotations": {ANNOTATION_RETRY: stamp(current_time())}}}
    change(access, run_name, body)
    if is_waiting:
        wait_until(access, run_name, lambda found: phase_of(found) not in GIVEN_UP, timeout_s=timeout_s)
    if not as_json:
        click.echo(f"{run_name}: the controller is told to go on; '{access.command('watch', run_name)}' shows it")
    if held is not None:
        raise held
