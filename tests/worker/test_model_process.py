"""The model process and the parent's side of it, with real child processes: rows, deaths, hangs, loads, orphans."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from contract.errors import GpuHardwareError, ModelError, ModelProcessDied, NoProgress, OutOfMemory
from contract.process_identity import identity_of
from contract.settings import ModelSettings, RowKind
from contract.store.errors import Unavailable
from tests.models_for_tests import build_per_token, rows_of
from tests.worker.build import FORK, model, process
from worker import model_client, model_process
from worker.model_client import LOAD_TRIES, Died, ModelProcess, Outcome, Rows
from worker.model_process import DidNotFit, Raised

Start = Callable[..., ModelProcess]

BIG = 1 << 23
"""Bytes; some forty times what the kernel buffers of a pipe."""


def answer(process: ModelProcess, *, timeout_s: float = 30.0) -> Outcome:
    """The next outcome."""
    deadline = time.monotonic() + timeout_s
    while (outcome := process.receive(0.5)) is None:
        assert time.monotonic() < deadline, "no answer"
    return outcome


def ask(process: ModelProcess, *values: str, is_fp32: bool = False) -> Outcome:
    """One batch, and what becomes of it."""
    process.submit(list(values), is_fp32=is_fp32)
    return answer(process)


def rows(outcome: Outcome) -> torch.Tensor:
    """The rows of a batch that went well."""
    assert isinstance(outcome, Rows), outcome
    return outcome.values


def wait_until(is_so: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Fails the test when it does not become so."""
    never = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        never.wait(0.01)


def threads_of(child: ModelProcess) -> list[psutil.Process]:
    """All threads of the process: a stop reaches them one after the other."""
    return [psutil.Process(thread.id) for thread in psutil.Process(child.pid).threads()]


def wait_until_gone(pid: int) -> None:
    """Fails the test when the process is still there in the end."""
    wait_until(lambda: identity_of(pid) is None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_come_back_bit_for_bit(start_process: Start, dtype: str) -> None:
    """Raw bytes through the pipe, no pickling: every dtype, numpy knows it or not."""
    child = start_process(model(dtype=dtype))
    values = ["MKV", "AAAA", "C" * 999]

    found = rows(ask(child, *values))

    expected = rows_of(values).to(getattr(torch, dtype))
    assert found.dtype == expected.dtype
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_rows_per_token_come_back_with_their_splits(start_process: Start) -> None:
    """One row for each token, and how many belong to which record."""
    child = start_process(model("build_per_token", kind=RowKind.PER_TOKEN))

    outcome = ask(child, "MKV", "A", "CC")

    assert isinstance(outcome, Rows)
    assert outcome.splits == (3, 1, 2)
    assert torch.equal(outcome.values, torch.cat(build_per_token()(["MKV", "A", "CC"])))


def test_the_second_look_is_returned_in_fp32(start_process: Start) -> None:
    """Whatever dtype rows are stored in."""
    child = start_process(model(dtype="float16"))

    found = rows(ask(child, "C" * 99_999, is_fp32=True))

    assert torch.equal(found, rows_of(["C" * 99_999]))


def test_replies_come_in_the_order_of_submission(start_process: Start) -> None:
    """Two batches are in the process at once; each gets its own rows."""
    child = start_process(model())
    child.submit(["A"])
    child.submit(["CC"])

    first, second = answer(child), answer(child)

    assert torch.equal(rows(first), rows_of(["A"]))
    assert torch.equal(rows(second), rows_of(["CC"]))
    assert child.num_in_flight == 0


def test_full_pipes_in_both_directions_do_not_block_each_other(start_process: Start) -> None:
    """Rows that nobody reads fill one direction while a large batch is sent in the other: everything arrives."""
    child = start_process(model(copies=BIG // 12))
    value = "A" * BIG
    child.submit(["A"])
    child.submit([value])

    first = rows(answer(child))
    child.submit([value])
    second, third = rows(answer(child)), rows(answer(child))

    assert torch.equal(first[0, -3:], rows_of(["A"])[0])
    assert torch.equal(second, third)
    assert torch.equal(second[0, :3], rows_of([value])[0])


@pytest.mark.parametrize(
    ("harm", "detail", "was_killed"),
    [
        ("segfault", f"signal {int(signal.SIGSEGV)}", False),
        ("kill", f"signal {int(signal.SIGKILL)}", True),
        ("exit", "exit code 3", False),
        ("device", "device-side assert", False),
    ],
)
def test_a_death_is_reported_for_each_batch_in_flight_and_the_next_one_starts_again(
    start_process: Start,
    harm: str,
    detail: str,
    was_killed: bool,  # noqa: FBT001
) -> None:
    """Both batches in it died, in order; the next submission finds a new process that works."""
    child = start_process(model(harm=harm, on="BAD"))
    before = ask(child, "A")

    child.submit(["BAD"])
    child.submit(["CC"])
    deaths = [answer(child), answer(child)]
    after = ask(child, "CC")

    assert torch.equal(rows(before), rows_of(["A"]))
    assert all(isinstance(death, Died) and detail in death.detail for death in deaths), deaths
    assert [death.was_killed for death in deaths if isinstance(death, Died)] == [was_killed] * 2
    assert torch.equal(rows(after), rows_of(["CC"]))
    assert child.num_restarts == 1


def test_a_process_that_died_idle_is_found_by_the_next_batch(start_process: Start) -> None:
    """Killed from outside between two batches: both that are then handed over died, the one after them works."""
    child = start_process(model())
    ask(child, "A")
    os.kill(child.pid or 0, signal.SIGKILL)
    assert child._connection.poll(20)  # the end of the pipe

    child.submit(["CC"])
    child.submit(["CC"])
    deaths = [answer(child), answer(child)]
    after = ask(child, "CC")

    assert all(isinstance(death, Died) and death.was_killed for death in deaths), deaths
    assert torch.equal(rows(after), rows_of(["CC"]))


@pytest.mark.parametrize(("harm", "kind"), [("raise", Raised), ("memory", DidNotFit), ("host-memory", DidNotFit)])
def test_what_a_model_raises_costs_the_batch_and_not_the_process(start_process: Start, harm: str, kind: type) -> None:
    """The process lives on, and says what was raised."""
    child = start_process(model(harm=harm, on="BAD"))

    failure, after = ask(child, "A", "BAD"), ask(child, "A")

    assert isinstance(failure, kind)
    assert "as said by a test" in failure.detail
    assert torch.equal(rows(after), rows_of(["A"]))
    assert child.num_restarts == 0


def test_a_hardware_fault_ends_the_worker(start_process: Start) -> None:
    """An uncorrectable memory error is no batch's fault, and no restart mends it."""
    child = start_process(model(harm="hardware", on="BAD"))
    child.submit(["BAD"])

    with pytest.raises(GpuHardwareError, match="uncorrectable ECC"):
        answer(child)


@pytest.mark.parametrize("harm", ["hang", "native-hang"])
def test_a_hanging_batch_is_killed_after_the_no_progress_timeout(start_process: Start, harm: str) -> None:
    """Both batches in it are reported as hung; a new process works."""
    child = start_process(model(harm=harm, on="BAD"), no_progress_seconds=0.8)
    ask(child, "A")

    child.submit(["BAD"])
    child.submit(["CC"])
    deaths = [answer(child), answer(child)]

    assert all(isinstance(death, Died) and death.did_hang for death in deaths), deaths
    assert torch.equal(rows(ask(child, "CC")), rows_of(["CC"]))


def test_sending_to_a_process_that_takes_nothing_ends_after_the_no_progress_timeout(start_process: Start) -> None:
    """Native code holds the child's interpreter, so nobody empties the pipe: the send ends, and both batches died."""
    child = start_process(model(harm="native-hang", on="BAD"), no_progress_seconds=0.8)
    ask(child, "A")
    child.submit(["BAD"])

    child.submit(["A" * BIG])
    deaths = [answer(child), answer(child)]

    assert all(isinstance(death, Died) and death.did_hang for death in deaths), deaths


def test_receiving_from_a_process_that_stops_halfway_ends_after_the_no_progress_timeout(start_process: Start) -> None:
    """The process stops with large rows half-way through the pipe: the receive ends, and both batches died."""
    child = start_process(model(copies=BIG // 12), no_progress_seconds=0.8)
    ask(child, "A")
    child.submit(["A"])
    child.submit(["CC"])
    assert child._connection.poll(20)
    os.kill(child.pid or 0, signal.SIGSTOP)
    wait_until(lambda: all(thread.status() == psutil.STATUS_STOPPED for thread in threads_of(child)))

    deaths = [answer(child), answer(child)]

    assert all(isinstance(death, Died) and death.did_hang for death in deaths), deaths


def test_a_process_that_cannot_even_be_killed_ends_the_worker(
    start_process: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that hangs in its driver: another start would meet the same device, so another node must do it."""
    child = start_process(model(harm="hang", on="BAD"), no_progress_seconds=0.2)
    ask(child, "A")
    child.submit(["BAD"])

    with monkeypatch.context() as patch:
        patch.setattr(model_client, "KILL_WAIT_S", 0.05)
        patch.setattr(type(child._process), "kill", lambda _: None)
        with pytest.raises(NoProgress, match="cannot be killed"):
            answer(child)


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("build_raising", ModelError, "no weights here"),
        ("no_such_factory", ModelError, "cannot be imported"),
        ("build_out_of_memory", OutOfMemory, "does not fit cpu"),
    ],
)
def test_a_load_that_can_never_work_ends_at_once(
    start_process: Start, factory: str, error: type[Exception], message: str
) -> None:
    """Permanent failures are not tried again."""
    child = start_process(model(factory))
    child.submit(["A"])

    with pytest.raises(error, match=message):
        answer(child)
    assert (child.num_restarts, child.pid) == (0, None)


@pytest.mark.parametrize(("device", "message"), [("cuda:99", "is not there"), ("abacus", "is unknown")])
def test_a_device_that_is_not_there_ends_at_once(device: str, message: str) -> None:
    """Permanent too, and said in words, not as a process that died."""
    child = ModelProcess(model(), device=device, context=FORK)
    child.submit(["A"])

    with pytest.raises(ModelError, match=message):
        answer(child)


def test_a_process_that_dies_while_loading_is_tried_three_times(start_process: Start, tmp_path: Path) -> None:
    """Bounded: then the worker ends, and says what happened."""
    starts = tmp_path / "starts"
    child = start_process(model("build_dying", starts=str(starts)))
    child.submit(["A"])

    with pytest.raises(ModelProcessDied, match=f"in {LOAD_TRIES} tries: .* signal {int(signal.SIGSEGV)}"):
        answer(child)
    assert len(starts.read_text().splitlines()) == LOAD_TRIES


def test_a_load_that_hangs_is_killed_and_tried_three_times(start_process: Start) -> None:
    """The no-progress timeout holds for loading too."""
    child = start_process(model("build_hanging"), no_progress_seconds=0.2)
    child.submit(["A"])

    with pytest.raises(ModelProcessDied, match=r"no batch finished for 0\.2 s"):
        answer(child)


def test_a_store_that_does_not_answer_while_weights_are_fetched_is_tried_again(
    start_process: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two loads meet an unreachable store, the third one works: no wrong model is reported."""
    tries = tmp_path / "tries"
    load = model_process.load_encoder

    def load_encoder(settings: ModelSettings, *, device: str) -> Any:
        num_tries = len(tries.read_text()) if tries.exists() else 0
        tries.write_text("x" * (num_tries + 1))
        if num_tries < 2:
            raise Unavailable("model.safetensors", "timed out")
        return load(settings, device=device)

    monkeypatch.setattr(model_process, "load_encoder", load_encoder)
    child = start_process(model())

    found = ask(child, "A")

    assert torch.equal(rows(found), rows_of(["A"]))
    assert child.num_restarts == 2


@pytest.mark.parametrize(("harm", "error"), [("device", ModelProcessDied), ("hardware", GpuHardwareError)])
def test_a_device_that_fails_the_warm_up_is_found_before_any_record(
    start_process: Start, harm: str, error: type[Exception]
) -> None:
    """The warm-up runs on the model's own sample; what it meets is judged like a load."""
    child = start_process(model(harm=harm, on="BAD", sample="BAD"))
    child.submit(["A"])

    with pytest.raises(error, match="as said by a test"):
        answer(child)


def test_loading_is_never_waited_for_longer_than_asked(start_process: Start, tmp_path: Path) -> None:
    """A load may take minutes: submit returns at once, receive after its timeout, and the rows come when it is done."""
    gate = tmp_path / "gate"
    child = start_process(model("build_slowly", gate=str(gate)))

    child.submit(["A"])
    child.submit(["CC"])
    meanwhile = [child.receive(0.0), child.receive(0.01)]
    gate.touch()

    assert meanwhile == [None, None]
    assert torch.equal(rows(answer(child)), rows_of(["A"]))
    assert torch.equal(rows(answer(child)), rows_of(["CC"]))


def test_a_loading_process_can_be_closed(start_process: Start, tmp_path: Path) -> None:
    """A drain during the load leaves nothing behind."""
    child = start_process(model("build_slowly", gate=str(tmp_path / "never")))
    child.submit(["A"])
    child.receive(0.0)
    pid = child.pid

    child.close()

    assert pid is not None
    wait_until_gone(pid)


def test_a_worker_knows_whether_its_model_has_ever_worked(start_process: Start) -> None:
    """Rows count, a batch that raised does not; a restart changes nothing."""
    child = start_process(model(harm="raise", on="BAD"))

    seen = [child.has_worked]
    ask(child, "BAD")
    seen.append(child.has_worked)
    ask(child, "A")
    child.close()
    seen.append(child.has_worked)

    assert seen == [False, False, True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_group_leave_the_model_process_alone(start_process: Start, number: int) -> None:
    """Ctrl-C and SIGTERM are the parent's to answer: its finished batches must still come."""
    child = start_process(model())
    ask(child, "A")

    os.kill(child.pid or 0, number)

    assert torch.equal(rows(ask(child, "CC")), rows_of(["CC"]))
    assert child.num_restarts == 0


@pytest.mark.parametrize(
    "settings",
    [model(), model(harm="hang"), model("build_hanging")],
    ids=["idle", "hanging", "loading"],
)
def test_the_child_ends_when_its_parent_is_killed(settings: ModelSettings) -> None:
    """SIGKILL of the parent: the child goes at once, whatever its model is doing, and frees the device."""
    read_end, write_end = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            child = process(settings)
            child.submit(["A"])
            child.receive(0.3)
            os.write(write_end, str(child.pid).encode())
            signal.pause()
        finally:
            os._exit(70)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        pid = int(os.read(pipe.fileno(), 32))

        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)

    wait_until_gone(pid)


@pytest.mark.timeout(90)
def test_the_default_fork_server_starts_restarts_and_survives_the_loss_of_its_server() -> None:
    """As in production: a death costs a fork; where SIGTERM to the group ended the server, another one is started."""
    child = ModelProcess(model(harm="segfault", on="BAD"), device="cpu", num_threads=1)
    try:
        first = ask(child, "A")
        death = ask(child, "BAD")
        second = ask(child, "A")
        server = forkserver._forkserver._forkserver_pid
        os.kill(server, signal.SIGTERM)
        wait_until_gone(server)
        orphaned = ask(child, "CC")
        os.kill(child.pid or 0, signal.SIGKILL)
        lost = ask(child, "CC")
        third = ask(child, "CC")
    finally:
        child.close()
        forkserver._forkserver._stop()

    assert multiprocessing.get_start_method(allow_none=True) in {None, "fork"}
    assert torch.equal(rows(first), rows(second))
    assert isinstance(death, Died)
    assert torch.equal(rows(orphaned), rows_of(["CC"]))
    assert isinstance(lost, Died)
    assert torch.equal(rows(third), rows_of(["CC"]))
