"""`inferencerun`: one file per command, loaded only when called, so that `--help` costs no torch.

Exit codes: 0 fine, 1 something is off (the command says what), 2 wrong usage, 64 and above as in `contract.names.ExitCode`.
Results go to standard output, errors and progress to standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from contract.errors import InferenceRunError

COMMANDS = {
    "run": "Run an InferenceRun on this machine, or resume it.",
    "status": "Where a run stands.",
    "shards": "Every shard: who holds it, and how far it is.",
    "failures": "The last ended attempts: class, evidence, pod and node.",
    "quarantine": "Records without a row, and why.",
    "report": "Write a page about a run for a browser: progress, workers, interruptions, where the time went.",
    "verify": "Read every object again and check it against the manifests and the input.",
    "export": "Write all rows, in input order, to one .pt, .npy, .safetensors or .parquet file.",
    "snapshot": "Name a consistent cut over all shards.",
    "archive": "Make a complete run read-only.",
    "cleanup": "Remove objects that no manifest names, and old generations.",
    "repair": "Set a shard whose manifest cannot be read back to unclaimed.",
    "retry": "Set failed shards, or quarantined records, back to pending.",
    "completion": "Print the completion script of a shell.",
}
"""Name and one line; `cli/<name>.py` holds the command as `command`."""


def load(name: str) -> click.Command:
    """The command of that name."""
    command: click.Command = import_module(f"cli.{name}").command
    return command


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called."""

    def __init__(
        self, *arguments: Any, table: Mapping[str, str], load: Callable[[str], click.Command], **others: Any
    ) -> None:
        """`table` has a line for each command, `load` imports one."""
        super().__init__(*arguments, **others)
        self._table = table
        self._load = load

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """All names, in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (click's signature)
        """The command, imported now; None when there is no such name."""
        return self._load(cmd_name) if cmd_name in self._table else None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names and options that begin so; from the table, without an import."""
        names = [CompletionItem(name, help=line) for name, line in self._table.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (click's signature)
        """The list of commands from the table alone, without an import."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._table.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error meant for the user becomes one line and its exit code."""
        try:
            return super().invoke(ctx)
        except InferenceRunError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(int(error.exit_code))


@click.group(
    name="inferencerun",
    cls=LazyGroup,
    table=COMMANDS,
    load=load,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="inferencerun-operator", prog_name="inferencerun")
def main() -> None:
    """Offline batch inference, every record exactly once.

    OUTPUT_URI is a run's output.uri: a directory, file:///..., s3://bucket/prefix or gs://bucket/prefix.
    """
