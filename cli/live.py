"""How a run is shown while it goes on: a live panel on a terminal, plain lines elsewhere, nothing with --json."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.coordinator import Turn
from cli.texts import duration_text, printable
from contract.manifest import ShardManifest
from controller.status import RunStatus

LINE_EVERY = timedelta(seconds=5)
"""Between two plain progress lines."""


def progress_line(status: RunStatus) -> str:
    """One line that says how far the run is."""
    progress, shards = status.progress, status.shards
    why = f"; {printable(status.message)}" if status.message else ""
    return (
        f"{status.phase}: {progress.percent} %, {progress.records} records, {progress.records_per_second}/s, "
        f"ETA {duration_text(progress.eta_s)}; shards {shards.complete}/{shards.total} complete, {shards.failed} failed; "
        f"workers {status.workers.active}/{status.workers.desired}; quarantined {status.quarantined}; "
        f"restarts {status.restarts.total}{why}"
    )


class Plain:
    """Lines on standard error: one every few seconds if something differs, one for each thing that happens."""

    def __init__(self) -> None:
        self._last: datetime | None = None
        self._phase = ""
        self._line = ""

    def show(self, turn: Turn) -> None:
        """A line when it is time for one, or when the phase has changed; an open breaker says its reason once."""
        if self._last is None or turn.at - self._last >= LINE_EVERY or turn.status.phase != self._phase:
            self._last, self._phase = turn.at, turn.status.phase
            line = progress_line(turn.status)
            if line != self._line:
                self._line = line
                click.echo(line, err=True)

    def note(self, text: str) -> None:
        """The text on a line of its own."""
        click.echo(printable(text), err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class Silent(Plain):
    """Nothing but what happens out of the ordinary: for --json."""

    def show(self, turn: Turn) -> None:
        """Nothing."""


class Panel:
    """A live table of workers with rate and ETA, on a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)

    def show(self, turn: Turn) -> None:
        """Redraw."""
        self._live.update(_panel(turn), refresh=True)

    def note(self, text: str) -> None:
        """The text above the panel."""
        self._console.print(Text(printable(text), style="yellow"))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()


def _panel(turn: Turn) -> Group:
    status = turn.status
    bar = ProgressBar(total=100.0, completed=float(status.progress.percent))
    return Group(Text(progress_line(status), style="bold"), bar, _workers(turn))


def _workers(turn: Turn) -> Table:
    held = {found.owner.uid: found for found in turn.manifests.values() if found.owner is not None}
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("worker", "state", "shard", "epoch", "records", "last commit"):
        table.add_column(column)
    for worker in sorted(turn.workers, key=lambda item: item.slot):
        table.add_row(worker.name, worker.state.value, *_held_cells(held.get(worker.uid), turn.at))
    return table


def _held_cells(found: ShardManifest | None, now: datetime) -> tuple[str, str, str, str]:
    if found is None:
        return ("-", "-", "-", "-")
    last = max((item.created_at for item in found.checkpoints), default=None)
    age = duration_text((now - last).total_seconds()) if last else "-"
    return (str(found.shard), str(found.epoch), str(sum(b - a for a, b in found.done)), age)
