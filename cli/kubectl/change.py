"""Changes of a run's spec, and waiting until the controller has carried them out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from cli.kubectl.api import Object, run_path
from cli.kubectl.options import Access
from cli.kubectl.runs import find_run
from cli.kubectl.status import phase_text
from contract.names import Phase

POLL_S = 1.0
OVER = frozenset({Phase.SUCCEEDED.value, Phase.FAILED.value})

Command = TypeVar("Command", bound=Callable[..., Any])


def wait_options(command: Command) -> Command:
    """Add --wait and --timeout; the command is called with `wait_s`, None = do not wait."""
    wait = click.option("--wait", "is_waiting", is_flag=True, help="Wait until the controller has carried it out.")
    timeout = click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0),
        default=300.0,
        show_default=True,
        help="Seconds to wait at most; exit code 1 after that.",
    )
    return wait(timeout(command))


def change(access: Access, name: str, body: Object, *, subresource: str = "") -> Object:
    """Merge-patch the run, or a part of it."""
    return access.api.patch(run_path(access.namespace, name, subresource), body)


def wait_until(access: Access, name: str, is_there: Callable[[Mapping[str, Any]], bool], *, timeout_s: float) -> Object:
    """The run once `is_there` says yes of it.

    Raises:
        click.exceptions.Exit: not within `timeout_s`; what it has come to is said.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        run = find_run(access, name)
        if is_there(run):
            return run
        if time.monotonic() >= deadline_s:
            click.echo(
                f"not there after {timeout_s:g} s: {phase_text(run)}; '{access.command('doctor', name)}' looks why",
                err=True,
            )
            raise click.exceptions.Exit(1)
        time.sleep(POLL_S)


def is_observed(run: Mapping[str, Any]) -> bool:
    """Whether the status is about the newest spec. Pure."""
    seen: int = (run.get("status") or {}).get("observedGeneration", 0)
    return seen >= int(run["metadata"].get("generation", 0))


def num_active(run: Mapping[str, Any]) -> int:
    """Workers that exist and have not ended, as the controller counts them. Pure."""
    return int(((run.get("status") or {}).get("workers") or {}).get("active") or 0)


def num_ready(run: Mapping[str, Any]) -> int:
    """Workers that run and are not asked to stop, as the controller counts them. Pure."""
    return int(((run.get("status") or {}).get("workers") or {}).get("ready") or 0)


def phase_of(run: Mapping[str, Any]) -> str:
    """The phase, empty before there is one. Pure."""
    return (run.get("status") or {}).get("phase") or ""
