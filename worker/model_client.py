"""The parent's side of the model process: start it, keep it fed, learn what became of each batch, start it again.

Up to two batches are in the process at once. Replies come in the order of submission. When the process dies, every batch
in it is reported as died, in order; the next submission starts a new process.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from contract.errors import GpuHardwareError, ModelError, NoProgress, OutOfMemory
from contract.errors import ModelProcessDied as KeptDying
from contract.settings import ModelSettings
from worker import model_process
from worker.model_process import DeviceError, DidNotFit, Encoded, LoadFailed, Raised, Ready, Work

DEPTH = 2
"""Batches in the process at once: one computing, one ready, so the device never waits for the pipe."""

LOAD_TRIES = 3
"""Starts of the process that may fail in a row for a reason that may pass."""

KILL_WAIT_S = 10.0
"""A SIGKILLed process that is still there after this hangs in its driver: nothing more can be done from here."""

_HARDWARE = re.compile(
    r"uncorrectable|ECC error|Xid|fallen off the bus|no CUDA-capable device|device unavailable", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a batch."""

    values: torch.Tensor
    splits: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Died:
    """The process died with this batch in it."""

    detail: str
    was_killed: bool = False
    """By SIGKILL, which somebody else may have sent."""
    did_hang: bool = False


Outcome = Rows | Raised | DidNotFit | Died


def default_context() -> BaseContext:
    """A fork server that has torch imported already: a restart costs a fork and the weights, not the imports.

    The server is single-threaded and touches no device, which is what makes forking from it safe.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worker.model_process"])
    return context


class ModelProcess:
    """One model process at a time."""

    def __init__(
        self,
        settings: ModelSettings,
        *,
        device: str = "auto",
        num_threads: int | None = None,
        no_progress_seconds: float = 600.0,
        context: BaseContext | None = None,
        on_restart: Callable[[int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._device = device
        self._num_threads = num_threads
        self._no_progress_seconds = no_progress_seconds
        self._context = context or default_context()
        self._on_restart = on_restart
        self._process: BaseProcess | None = None
        self._connection: Any = None
        self._in_flight = 0
        self._died: list[Died] = []
        self._waiting_since = 0.0
        self._num_starts = 0
        self.device_name = ""

    @property
    def num_restarts(self) -> int:
        """Starts after the first."""
        return max(0, self._num_starts - 1)

    @property
    def num_in_flight(self) -> int:
        """Batches submitted whose outcome has not been received."""
        return self._in_flight + len(self._died)

    @property
    def pid(self) -> int | None:
        """Process id of the running process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process and wait until the model has run its warm-up.

        Raises:
            ModelError: it can never be loaded as the spec says.
            OutOfMemory: it does not fit the device.
            GpuHardwareError: the device is broken.
            ModelProcessDied: it died while loading, several times in a row.
        """
        detail = ""
        for _ in range(LOAD_TRIES):
            failure = self._start_once()
            if failure is None:
                return
            self._discard()
            if isinstance(failure, LoadFailed):
                if failure.is_out_of_memory:
                    raise OutOfMemory(failure.detail)
                if failure.is_permanent:
                    raise ModelError(failure.detail)
            detail = failure.detail
            if _HARDWARE.search(detail):
                raise GpuHardwareError(detail)
        raise KeptDying(f"the model process did not start in {LOAD_TRIES} tries: {detail}")

    def submit(self, payloads: Sequence[Any], *, is_fp32: bool = False) -> None:
        """Hand over a batch; at most DEPTH may be in flight. A dead process is found by `receive`."""
        assert self._in_flight < DEPTH, "more batches in flight than the process may hold"
        if self._process is None and not self._died:
            self.start()
        if self._in_flight == 0:
            self._waiting_since = time.monotonic()
        self._in_flight += 1
        if self._died:
            self._bury(self._died[-1])
            return
        try:
            self._connection.send(Work(payloads=payloads, is_fp32=is_fp32))
        except (BrokenPipeError, ConnectionResetError):
            self._bury(self._verdict())

    def receive(self, timeout_s: float) -> Outcome | None:
        """What became of the oldest batch; None when there is no answer within `timeout_s`.

        Raises:
            NoProgress: the process hangs and cannot even be killed.
            GpuHardwareError: the device reported a fault no restart can mend.
        """
        if self._died:
            return self._died.pop(0)
        assert self._in_flight, "nothing was submitted"
        try:
            if not self._connection.poll(timeout_s):
                if time.monotonic() - self._waiting_since < self._no_progress_seconds:
                    return None
                self._bury(self._kill_hanging())
                return self._died.pop(0)
            reply = self._connection.recv()
            if isinstance(reply, Encoded):
                values = model_process.from_bytes(reply, self._connection.recv_bytes())
                self._answered()
                return Rows(values=values, splits=reply.splits)
        except (EOFError, OSError):
            self._bury(self._verdict())
            return self._died.pop(0)
        if isinstance(reply, DeviceError):
            if _HARDWARE.search(reply.detail):
                raise GpuHardwareError(reply.detail)
            self._bury(Died(detail=reply.detail))
            return self._died.pop(0)
        self._answered()
        assert isinstance(reply, Raised | DidNotFit), f"unknown reply {reply!r}"
        return reply

    def run(self, payloads: Sequence[Any], *, is_fp32: bool = False) -> Outcome:
        """Submit a batch with nothing beside it, and wait for its outcome."""
        assert self.num_in_flight == 0, "a batch that must run alone has company"
        self.submit(payloads, is_fp32=is_fp32)
        while (outcome := self.receive(1.0)) is None:
            pass  # bounded by the no-progress timeout inside receive
        return outcome

    def close(self) -> None:
        """End the process: it leaves when its pipe closes, or is killed."""
        if self._process is None:
            return
        self._connection.close()
        self._process.join(1.0)
        self._discard()

    def _start_once(self) -> LoadFailed | Died | None:
        ours, theirs = self._context.Pipe()
        inherited = ours if self._context.get_start_method() == "fork" else None
        process = self._context.Process(  # type: ignore[attr-defined]
            target=model_process.serve,
            args=(theirs, inherited, self._settings, self._device, self._num_threads),
            name="model",
            daemon=True,
        )
        process.start()
        theirs.close()
        self._process, self._connection = process, ours
        self._num_starts += 1
        if self._num_starts > 1 and self._on_restart:
            self._on_restart(self.num_restarts)
        try:
            if not ours.poll(self._no_progress_seconds):
                return self._kill_hanging()
            message = ours.recv()
        except (EOFError, OSError):
            return self._verdict()
        if isinstance(message, Ready):
            self.device_name = message.device
            return None
        assert isinstance(message, LoadFailed), f"unknown first message {message!r}"
        return message

    def _answered(self) -> None:
        self._in_flight -= 1
        self._waiting_since = time.monotonic()

    def _bury(self, verdict: Died) -> None:
        self._died.extend([verdict] * self._in_flight)
        self._in_flight = 0
        self._discard()

    def _verdict(self) -> Died:
        """How the process died; it has closed its pipe, so its end is near if not past."""
        assert self._process is not None
        self._process.join(KILL_WAIT_S)
        code = self._process.exitcode
        if code is None:
            return self._kill_hanging()
        if code < 0:
            return Died(detail=f"the model process was killed by signal {-code}", was_killed=code == -9)
        return Died(detail=f"the model process ended with exit code {code}")

    def _kill_hanging(self) -> Died:
        assert self._process is not None
        self._process.kill()
        self._process.join(KILL_WAIT_S)
        if self._process.exitcode is None:
            raise NoProgress(
                f"no batch finished for {self._no_progress_seconds:.0f} s and the model process cannot be killed: "
                "the device driver hangs; replace the worker on another node"
            )
        return Died(detail=f"no batch finished for {self._no_progress_seconds:.0f} s", did_hang=True)

    def _discard(self) -> None:
        if self._process is None:
            return
        self._connection.close()
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(KILL_WAIT_S)
        self._process = None
