"""Fixtures of the worker's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.settings import ModelSettings
from tests.worker.build import SmallRun, process
from worker.model_client import ModelProcess
from worker.run import Worker


@pytest.fixture
def start_process() -> Iterator[Callable[..., ModelProcess]]:
    """Makes model processes; ends them after the test, whatever it did."""
    made: list[ModelProcess] = []

    def start(settings: ModelSettings, **options: Any) -> ModelProcess:
        made.append(process(settings, **options))
        return made[-1]

    yield start
    for one in reversed(made):
        one.close()


@pytest.fixture
def small_run(tmp_path: Path) -> Iterator[Callable[..., SmallRun]]:
    """Makes small runs below one directory; ends the model processes of their workers after the test."""
    workers: list[Worker] = []

    class Watched(SmallRun):
        def worker(self, *args: Any, **changes: Any) -> Worker:
            workers.append(super().worker(*args, **changes))
            return workers[-1]

    def make(sequences: list[str], *, name: str = "run", **options: Any) -> SmallRun:
        return Watched(tmp_path / name, sequences, **options)

    yield make
    for worker in reversed(workers):  # a later fork holds the earlier ones' pipes open
        worker.model.close()
        worker.recorder.close()
