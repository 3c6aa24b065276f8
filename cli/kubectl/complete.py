"""`kubectl_complete-inferencerun`: kubectl's own completion runs it for the words after `kubectl inferencerun`.

It prints a line for each possibility, with a tab before its meaning, and last `:4`: no file names.
Source: https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/, https://github.com/spf13/cobra (ShellCompDirective)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from click.shell_completion import ShellComplete

from cli.kubectl.main import main as program

NO_FILES = ":4"


def main() -> None:
    """Complete the last of the words given."""
    for line in completed(sys.argv[1:]):
        click.echo(line)


def completed(words: Sequence[str]) -> list[str]:
    """Lines for kubectl. The last word is what has been typed of it, empty after a blank."""
    *before, incomplete = words or [""]
    found = ShellComplete(program, {}, "kubectl inferencerun", "").get_completions(list(before), incomplete)
    lines = [f"{item.value}\t{item.help}" if item.help else str(item.value) for item in found if item.type == "plain"]
    return [*lines, NO_FILES]
