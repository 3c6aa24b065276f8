"""`kubectl inferencerun watch`: a live table of workers, shards and rate, until the run is over."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import click

from cli.kubectl.api import ApiUnreachable, Object
from cli.kubectl.change import OVER, phase_of
from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run, pods_of
from cli.kubectl.shard_watch import ShardWatch
from cli.kubectl.status import neglect_text, phase_text, status_fields, worker_cells
from cli.kubectl.workers import COLUMNS, WorkerRow, worker_rows
from cli.output import current_time
from cli.present import print_json
from cli.texts import duration_text, printable
from contract.names import Phase
from controller.pods import read_pod

FIRST_LOOK_S = 2.0
"""How long the first picture waits for the store; later ones take what is there."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One look."""

    run: Object
    workers: tuple[WorkerRow, ...]
    problem: str
    """Why shards are not shown; empty when they are."""
    at: datetime
    neglect: str = ""
    """That no controller looks at the run; empty when one does, or may yet."""


@click.command(name="watch")
@run_argument
@click.option(
    "--every", "every_s", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Seconds between looks."
)
@click.option("--no-shards", is_flag=True, help="Leave the store alone.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each look.")
@cluster_options
def command(run_name: str, *, every_s: float, no_shards: bool, as_json: bool, access: Access) -> None:
    """Workers, shards and rate, live, until the run is over. Plain lines when standard output is no terminal.

    Exits 0 when the run succeeds, 1 when it fails. Ctrl-C ends the watch and nothing else.
    """
    run = find_run(access, run_name)
    shards = None if no_shards else ShardWatch(run)
    if shards is not None:
        shards.start(every_s=every_s)
        shards.wait(FIRST_LOOK_S)
    with ExitStack() as stack:
        screen = _Json() if as_json else stack.enter_context(_Panel()) if sys.stdout.isatty() else _Plain()
        phase = ""
        while phase not in OVER:
            try:
                picture = _look(access, run_name, shards)
            except ApiUnreachable as error:  # a watch outlives an API server that restarts
                screen.note(str(error))
            else:
                screen.show(picture)
                phase = phase_of(picture.run)
            if phase not in OVER:
                time.sleep(every_s)
    if phase == Phase.FAILED:
        raise click.exceptions.Exit(1)


def _look(access: Access, run_name: str, shards: ShardWatch | None) -> Picture:
    run = find_run(access, run_name)
    pods = [read_pod(item) for item in pods_of(access, run)]
    now = current_time()
    workers = worker_rows(pods, shards.manifests if shards else None, now=now)
    neglect = neglect_text(run, now=now, doctor=access.command("doctor", run_name))
    return Picture(run, workers, shards.problem if shards else "", now, neglect)


def headline(run: Object) -> str:
    """A line about the run. Pure."""
    status = run.get("status") or {}
    progress, shards, workers = (status.get(name) or {} for name in ("progress", "shards", "workers"))
    if not progress:
        return phase_text(run)
    return (
        f"{phase_text(run)}; {progress.get('percent')} %, {progress.get('records')} records, "
        f"{progress.get('recordsPerSecond')}/s, ETA {duration_text(progress.get('etaSeconds'))}; "
        f"shards {shards.get('complete')}/{shards.get('total')} complete, {shards.get('failed')} failed; "
        f"workers {workers.get('ready')}/{workers.get('desired')}; quarantined {status.get('quarantined')}; "
        f"restarts {(status.get('restarts') or {}).get('total')}"
    )


def worker_text(row: WorkerRow) -> str:
    """A worker in a few words. Pure."""
    place = f" on {row.node}" if row.node else ""
    shard = f", shard {row.shard}, {row.records} done" if row.shard is not None else ""
    return f"{row.pod} {row.state}{place}{shard}"


class _Screen:
    """Where pictures go."""

    def show(self, picture: Picture) -> None:
        """Show one."""
        raise NotImplementedError

    def note(self, text: str) -> None:
        """The text on standard error."""
        click.echo(printable(text), err=True)


class _Json(_Screen):
    """A line of JSON for each look."""

    def show(self, picture: Picture) -> None:
        """The line."""
        fields: dict[str, Any] = status_fields(picture.run, picture.workers)
        problems = {"storeProblem": picture.problem or None, "neglect": picture.neglect or None}
        print_json({"at": picture.at.isoformat(), **fields, **problems})


class _Plain(_Screen):
    """A line for each look at which something differs, one for each worker that does."""

    def __init__(self) -> None:
        self._headline = ""
        self._workers: dict[str, str] = {}
        self._problem = ""
        self._is_neglected = False

    def show(self, picture: Picture) -> None:
        """What is new."""
        text = headline(picture.run)
        if text != self._headline:
            self._headline = text
            click.echo(f"{picture.at:%H:%M:%S}  {printable(text)}")
        workers = {row.pod: worker_text(row) for row in picture.workers}
        for pod, text in workers.items():
            if self._workers.get(pod) != text:
                click.echo(f"          {printable(text)}")
        for pod in self._workers.keys() - workers.keys():
            click.echo(f"          {printable(pod)} gone")
        self._workers = workers
        if picture.problem != self._problem:
            self._problem = picture.problem
            if picture.problem:
                self.note(f"shards are not shown: {picture.problem}")
        if picture.neglect and not self._is_neglected:
            self.note(picture.neglect)
        self._is_neglected = bool(picture.neglect)


class _Panel(_Screen):
    """A table that is drawn anew at each look, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415  (0.1 s that only a terminal pays)
        from rich.live import Live  # noqa: PLC0415

        self._live = Live(console=Console(), auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, picture: Picture) -> None:
        """Redraw."""
        self._live.update(drawn(picture), refresh=True)

    def note(self, text: str) -> None:
        """The text above the table."""
        self._live.console.print(printable(text), style="yellow", markup=False)


def drawn(picture: Picture) -> Any:
    """The picture as rich draws it. Ids and messages are shown as they are, never as markup."""
    from rich.console import Group  # noqa: PLC0415
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    percent = (((picture.run.get("status") or {}).get("progress")) or {}).get("percent") or "0"
    parts: list[Any] = [
        Text(printable(f"{picture.run['metadata']['name']}  {headline(picture.run)}"), style="bold"),
        ProgressBar(total=100.0, completed=float(percent)),
        _table(picture.workers, picture.at),
    ]
    if picture.problem:
        parts.append(Text(printable(f"shards are not shown: {picture.problem}"), style="yellow"))
    if picture.neglect:
        parts.append(Text(printable(picture.neglect), style="yellow"))
    return Group(*parts)


def _table(workers: Sequence[WorkerRow], now: datetime) -> Any:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in COLUMNS:
        table.add_column(column.lower())
    for row in workers:
        table.add_row(*(Text(printable(cell)) for cell in worker_cells(row, now)))
    return table
