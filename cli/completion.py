"""`inferencerun completion`: the script that makes a shell complete commands, options and, on a cluster, names of runs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cli.texts import printable


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL, to be read when a shell starts.

    For PROGRAM, which is inferencerun or kubectl-inferencerun:
    bash: eval "$(PROGRAM completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc, after compinit;
    fish: PROGRAM completion fish > ~/.config/fish/completions/PROGRAM.fish
    """
    root = ctx.find_root().command
    program = printable(root.name)
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    kind = get_completion_class(shell)
    assert kind is not None, "one of those that click brings"
    click.echo(kind(root, {}, program, variable).source())
