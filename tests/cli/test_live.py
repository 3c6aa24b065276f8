"""What `inferencerun run` prints where there is no terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cli.coordinator import Turn
from cli.live import LINE_EVERY, Plain
from contract.names import Phase
from controller.status import Progress, RunStatus

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)


def turn(after: timedelta, status: RunStatus) -> Turn:
    """One look at a run."""
    return Turn(at=BEGIN + after, status=status, workers=(), manifests={})


def test_a_line_comes_when_it_is_time_or_the_phase_changes(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress is told every few seconds, another phase at once."""
    screen = Plain()

    for number, phase in enumerate((Phase.PENDING, Phase.RUNNING, Phase.RUNNING)):
        screen.show(turn(timedelta(seconds=number), RunStatus(phase=phase, progress=Progress(records=number))))
    screen.show(turn(timedelta(seconds=1) + LINE_EVERY, RunStatus(phase=Phase.RUNNING, progress=Progress(records=9))))

    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[1] for line in lines] == [" 0 records", " 1 records", " 9 records"]


def test_an_open_breaker_says_its_reason_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that waits for half an hour does not fill a log with the same line."""
    screen = Plain()

    for number in range(5):
        screen.show(turn(number * LINE_EVERY, RunStatus(phase=Phase.CIRCUIT_OPEN, message="no module named x")))

    assert capsys.readouterr().err.count("no module named x") == 1
