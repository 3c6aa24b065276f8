"""Commands of `inferencerun` for a run that is named: its output URI is looked up, the rest is theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from cli.kubectl.api import Object
from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run, named, output_uri
from cli.output import read_record
from cli.present import wording
from contract.errors import Corrupt, IncompatibleRun, InvalidInput, SpecError
from contract.run_record import RunRecord
from contract.store.errors import AccessDenied, Unavailable
from controller import ledger
from controller.wording import reworded

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
        call(original, find_run(access, run_name), **others)

    # NAME first, as OUTPUT_URI is there; then what the original takes, and last which cluster.
    named, *cluster = command.params
    command.params = [named, *(item for item in original.params if item.name != "output_uri"), *cluster]
    return command


def call(original: click.Command, run: Object, **others: Any) -> None:
    """Call a command of `inferencerun` on the run's output, in the words of the plug-in."""
    assert original.callback is not None, "a command has one"
    with speaking_of(run, **others) as uri:
        original.callback(output_uri=uri, **others)


@contextmanager
def speaking_of(run: Object, **options: Any) -> Iterator[str]:
    """Have the code of `inferencerun` speak of a run by its name; gives its output's URI.

    An error of the store says what can be done about it; and before what another run has written there is shown, or
    changed, by this run's name, that is said on standard error. `options` are those of the command: a generation that was
    asked for is nobody else's by mistake.
    """
    uri, name = output_uri(run), named(run)
    token = wording.set(lambda text: reworded(text, name))
    try:
        with explained(run):
            note = whose(run, read_record(uri)) if options.get("generation") is None else ""
            if note and "generation" in options and own_generation(run) is not None:
                note += f"; --generation {own_generation(run)} shows its own"
            if note:
                click.echo(f"note: {note}", err=True)
            yield uri
    finally:
        wording.reset(token)


def own_generation(run: Object) -> int | None:
    """The generation that the run's workers have worked on, as its controller has noted it; None = none. Pure."""
    return ledger.from_status(run.get("status") or {}).store_generation


def whose(run: Object, record: RunRecord) -> str:
    """Whose rows the current generation of the output holds, when they are not this run's; empty when they are. Pure.

    A run that was applied with `resume: Restart` on the output of another opens a generation of its own there.
    """
    name, own = run["metadata"]["name"], own_generation(run)
    if record.name == name or own == record.generation:
        return ""
    of_own = f"that of run {name!r} is {own}" if own is not None else f"run {name!r} has opened none here"
    return f"generation {record.generation}, the current one here, is run {record.name!r}'s; {of_own}"


@contextmanager
def explained(run: Object) -> Iterator[None]:
    """Say errors of the run's store in the plug-in's words: whose credentials were refused, what works without the store."""
    uri, name = output_uri(run), named(run)
    try:
        yield
    except AccessDenied as error:
        raise AccessDenied(
            error.key, f"{error.detail}. This was asked with your own credentials, not the workers'; {WITHOUT_STORE}"
        ) from error
    except Unavailable as error:
        raise Unavailable(error.key, f"{error.detail}. It may be open to the cluster only; {WITHOUT_STORE}") from error
    except (Corrupt, IncompatibleRun, InvalidInput) as error:
        raise type(error)(reworded(str(error), name)) from error
    except SpecError as error:
        where = (
            f". {uri} is a path in the worker pods: call this where it is mounted" if uri.startswith("file:") else ""
        )
        raise SpecError(f"{reworded(str(error), name)}{where}") from error
