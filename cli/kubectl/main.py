"""`kubectl-inferencerun`: kubectl runs it as `kubectl inferencerun`.

Each command takes the NAME of an InferenceRun. Those that read or change its results are the commands of `inferencerun`,
called with the run's output URI.
"""

from __future__ import annotations

from importlib import import_module

import click

from cli.main import LazyGroup

COMMANDS = {
    "status": "One screen: phase, progress, workers, conditions, last failures.",
    "watch": "The same, live.",
    "logs": "What its workers say.",
    "doctor": "Why a run does not progress, and what mends it; without NAME: is the operator well?",
    "suspend": "Drain all workers; what is done stays done.",
    "resume": "Go on after suspend.",
    "scale": "Change the number of workers.",
    "retry": "Set failed shards back to pending and wake the controller.",
    "results": "Where the rows are, how many, and how to load them.",
    "shards": "Every shard: who holds it, and how far it is.",
    "failures": "The last ended attempts, and workers that ended before they held a shard: class, evidence, pod and node.",
    "quarantine": "Records without a row, and why.",
    "report": "Write a page about a run for a browser: progress, workers, interruptions, where the time went.",
    "verify": "Read every object again and check it against the manifests and the input.",
    "export": "Write all rows, in input order, to one file.",
    "completion": "Print the completion script of a shell.",
}
"""Name and one line."""

ON_STORE = frozenset({"shards", "quarantine", "report", "verify", "export"})
"""Commands of `inferencerun`, called with the run's output. The others are in `cli/kubectl/<name>.py`, as `command`."""


def load(name: str) -> click.Command:
    """The command of that name."""
    if name in ON_STORE:
        made: click.Command = import_module("cli.kubectl.on_store").by_name(name)
        return made
    module = f"cli.{name}" if name == "completion" else f"cli.kubectl.{name}"
    command: click.Command = import_module(module).command
    return command


@click.group(
    name="kubectl-inferencerun",
    cls=LazyGroup,
    table=COMMANDS,
    load=load,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="inferencerun-operator", prog_name="kubectl-inferencerun")
def main() -> None:
    """InferenceRuns of a cluster: look, steer, find out what is wrong.

    NAME is an InferenceRun. Commands that read its results do so with your own credentials for the store.
    """
