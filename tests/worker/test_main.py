"""The worker's entry point: every end has its exit code, and the flight recorder says why."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from contract import names
from contract.errors import Fenced, GpuHardwareError, ModelError, NoProgress
from contract.flight import Flight, from_text
from contract.names import ExitCode
from contract.settings import to_json
from contract.store.errors import AccessDenied, Unavailable
from tests.worker.build import FORK, SmallRun, expected_rows, model, proteins, settings
from worker import __main__ as entry
from worker import model_client


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Puts back what an entry point changes for good: signal handlers, the log's handlers, torch's threads."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root, num_threads = logging.getLogger(), torch.get_num_threads()
    log_handlers, level = root.handlers[:], root.level
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    root.handlers[:] = log_handlers
    root.setLevel(level)
    torch.set_num_threads(num_threads)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The termination message file of the worker under test."""
    path = tmp_path / "termination-log"
    monkeypatch.setenv(names.ENV_TERMINATION_LOG, str(path))
    monkeypatch.delenv(names.ENV_SETTINGS, raising=False)
    return path


def last_words(path: Path) -> Flight:
    """What the flight recorder says at the end."""
    found = from_text(path.read_text())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelError("no such weights"), ExitCode.INVALID),
        (AccessDenied("k", "forbidden"), ExitCode.STORE_REFUSED),
        (Unavailable("k", "down"), ExitCode.TRANSIENT),
        (NoProgress("hangs"), ExitCode.NO_PROGRESS),
        (GpuHardwareError("ECC"), ExitCode.GPU_HARDWARE),
        (MemoryError(), ExitCode.MEMORY),
        (Fenced("epoch 2"), ExitCode.FENCED),
        (ZeroDivisionError("our own mistake"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_has_its_exit_code_and_is_told(
    log: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    """The exit status and the flight recorder agree, and the detail names the error."""

    def fail(*_: object) -> ExitCode:
        raise error

    monkeypatch.setattr(entry, "_run", fail)

    assert entry.main() == code
    assert last_words(log).exit_code == code
    assert str(error) in last_words(log).detail


def test_a_worker_without_settings_says_who_starts_workers(log: Path) -> None:
    """Exit 64: the same start would fail again."""
    assert entry.main() == ExitCode.INVALID
    assert "started by the controller or `inferencerun run`" in last_words(log).detail


@pytest.fixture
def started(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[int, SmallRun]]:
    """Runs the entry point, as its environment says, over a small run."""

    def start() -> tuple[int, SmallRun]:
        run = SmallRun(tmp_path / "run", proteins(20), settings=settings(model=model()))
        own = settings(f"file://{run.root}/out", model=model(), device="cpu")
        monkeypatch.setenv(names.ENV_SETTINGS, to_json(own))
        monkeypatch.setattr(model_client, "default_context", lambda: FORK)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        return entry.main(), run

    return start


def test_a_worker_runs_from_its_environment_alone(
    started: Callable[[], tuple[int, SmallRun]], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings and names from the environment; exit 0, all rows, versions in the checkpoints."""
    monkeypatch.setenv(names.ENV_POD_NAME, "pod-7")
    monkeypatch.setenv(names.ENV_POD_UID, "uid-7")

    code, run = started()

    assert code == ExitCode.NO_WORK_LEFT
    assert run.rows() == expected_rows(proteins(20))
    assert set(run.contents()[0]["metadata"]["versions"]) == {"inferencerun", "torch", "numpy", "python"}
    assert (last_words(log).exit_code, last_words(log).has_committed) == (0, True)


def test_sigterm_drains(
    started: Callable[[], tuple[int, SmallRun]], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent while a batch is handed over: exit 143, the shard is free, an eviction is on record."""
    submit = entry.ModelProcess.submit

    def interrupted(*args: object, **options: object) -> None:
        submit(*args, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(entry.ModelProcess, "submit", interrupted)

    code, run = started()

    assert code == ExitCode.DRAINED == last_words(log).exit_code
    assert run.manifest().owner is None
    assert [attempt.failure_class.value for attempt in run.manifest().attempts] == ["SpotEviction"]


@pytest.mark.parametrize("is_told", [True, False], ids=["a byte", "end of file"])
def test_the_lifeline_asks_to_leave_and_says_that_nobody_was_evicted(is_told: bool) -> None:  # noqa: FBT001
    """The coordinator says so, or is gone: either way the drain is intended."""
    read_end, write_end = os.pipe()
    drain = threading.Event()
    lifeline = entry.Lifeline(str(read_end), drain)
    before = (drain.is_set(), lifeline.is_intended)

    if is_told:
        os.write(write_end, b"x")
    else:
        os.close(write_end)

    assert drain.wait(20)
    assert before == (False, False)
    assert lifeline.is_intended
    os.close(read_end)
    if is_told:
        os.close(write_end)


def test_without_a_lifeline_nobody_asks() -> None:
    """In a pod there is no coordinator's pipe."""
    drain = threading.Event()

    lifeline = entry.Lifeline(None, drain)

    assert not drain.is_set()
    assert not lifeline.is_intended


@pytest.mark.parametrize(("text", "expected"), [("", None), ("4", 4), ("0", None), ("many", None)])
def test_the_model_process_gets_the_threads_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: int | None
) -> None:
    """OMP_NUM_THREADS when it is a positive number, else torch's own choice."""
    monkeypatch.setenv("OMP_NUM_THREADS", text)

    assert entry._num_threads(os.environ) == expected
