"""The termination-message file: always one whole, readable text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contract.flight import Flight, from_text
from worker.flight_recorder import FlightRecorder


def test_the_last_flight_can_be_read_while_the_worker_lives(tmp_path: Path) -> None:
    """No close and no flush is needed: whoever looks after a SIGKILL finds it."""
    path = tmp_path / "termination-log"
    recorder = FlightRecorder(path)
    flight = Flight(shard=3, epoch=2, first=10, next=20)

    recorder.record(flight)
    found = from_text(path.read_text())
    recorder.close()

    assert found == flight == recorder.flight


def test_a_shorter_text_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    """Neither of an earlier record nor of what the file held before: padded, not truncated."""
    path = tmp_path / "termination-log"
    path.write_text("x" * 1000)

    with FlightRecorder(path) as recorder:
        recorder.record(Flight(detail="y" * 3000))
        recorder.record(Flight(shard=1))

    assert from_text(path.read_text()) == Flight(shard=1)


def test_the_file_is_overwritten_in_place(tmp_path: Path) -> None:
    """A bind mount follows the file, not the name: it must stay the same one."""
    path = tmp_path / "termination-log"
    path.touch()
    before = path.stat().st_ino

    with FlightRecorder(path) as recorder:
        for number in range(3):
            recorder.record(replace(recorder.flight, shard=number))

    assert path.stat().st_ino == before
