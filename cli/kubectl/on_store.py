"""Commands of `inferencerun` for a run that is named: its output URI is looked up, the rest is theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run, output_uri
from contract.errors import SpecError
from contract.store.errors import AccessDenied, Unavailable

WITHOUT_STORE = "status, watch, logs, suspend, resume, scale and doctor work without the store"


def by_name(name: str) -> click.Command:
    """The command `name` of `inferencerun`, taking NAME in the place of OUTPUT_URI."""
    try:
        original: click.Command = import_module(f"cli.{name}").command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"numpy", "pyarrow", "safetensors", "torch"}:
            raise
        raise SpecError(f"{name} needs {error.name}: pip install '.[cli]' in a checkout of the project") from error

    @click.command(name=name, help=original.help)
    @run_argument
    @cluster_options
    def command(run_name: str, *, access: Access, **others: Any) -> None:
        call(original, output_uri(find_run(access, run_name)), **others)

    # NAME first, as OUTPUT_URI is there; then what the original takes, and last which cluster.
    named, *cluster = command.params
    command.params = [named, *(item for item in original.params if item.name != "output_uri"), *cluster]
    return command


def call(original: click.Command, uri: str, **others: Any) -> None:
    """Call a command of `inferencerun` on `uri`; an error of the store says what can be done about it."""
    assert original.callback is not None, "a command has one"
    with explained(uri):
        original.callback(output_uri=uri, **others)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Say whose credentials a store has refused, and what works without it."""
    try:
        yield
    except AccessDenied as error:
        raise AccessDenied(
            error.key, f"{error.detail}. This was asked with your own credentials, not the workers'; {WITHOUT_STORE}"
        ) from error
    except Unavailable as error:
        raise Unavailable(error.key, f"{error.detail}. It may be open to the cluster only; {WITHOUT_STORE}") from error
    except SpecError as error:
        if not uri.startswith("file:"):
            raise
        raise SpecError(f"{error}. {uri} is a path in the worker pods: call this where it is mounted") from error
