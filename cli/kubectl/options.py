"""Options and arguments that all commands of the plug-in share: which cluster, which namespace, which run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from cli.kubectl.api import Api, connect, run_path
from contract.errors import InferenceRunError

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Access:
    """A cluster, and the namespace that names are looked up in."""

    api: Api
    namespace: str

    def command(self, name: str, run: str) -> str:
        """A command on a run, to be shown for copying: `kubectl inferencerun resume swissprot -n proteins`."""
        where = "" if self.namespace == self.api.default_namespace else f" -n {self.namespace}"
        return f"kubectl inferencerun {name} {run}{where}"


def complete_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Names of the runs in the namespace. None at all when the cluster cannot be asked: a prompt shows no errors."""
    given = ctx.params
    try:
        access = open_access(given.get("namespace"), given.get("context"), given.get("kubeconfig"))
        runs = access.api.list_all(run_path(access.namespace))
    except InferenceRunError:
        return []
    names = [(item["metadata"]["name"], (item.get("status") or {}).get("phase")) for item in runs]
    return [CompletionItem(name, help=phase) for name, phase in names if name.startswith(incomplete)]


run_argument = click.argument("run_name", metavar="NAME", shell_complete=complete_runs)
optional_run_argument = click.argument("run_name", metavar="[NAME]", required=False, shell_complete=complete_runs)

_CLUSTER_OPTIONS = (
    click.option("-n", "--namespace", help="Namespace of the run; the context's if not given."),
    click.option("--context", help="Context of the kubeconfig file; the current one if not given."),
    click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path),
        help="Kubeconfig file; that of KUBECONFIG, or ~/.kube/config, if not given.",
    ),
)


def cluster_options(command: Command) -> Command:
    """Add the options that say which cluster; the command is called with `access` in their place."""

    @functools.wraps(command)
    def call(
        *arguments: Any, namespace: str | None, context: str | None, kubeconfig: Path | None, **others: Any
    ) -> Any:
        return command(*arguments, access=open_access(namespace, context, kubeconfig), **others)

    for option in reversed(_CLUSTER_OPTIONS):
        call = option(call)
    return call  # type: ignore[return-value]  # what click makes of a function is called like it


def open_access(namespace: str | None, context: str | None, kubeconfig: Path | None) -> Access:
    """Access to the cluster that the options name. Raises SpecError."""
    api = connect(kubeconfig, context)
    return Access(api, namespace or api.default_namespace)
