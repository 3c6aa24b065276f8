"""The parent's side of the model process: start it, keep it fed, learn what became of each batch, start it again.

Up to two batches are in the process at once. Replies come in the order of submission. When the process dies, every batch
in it is reported as died, in order; the next submission starts a new process. Loading is waited for in `receive`, like
everything else, and never longer than its timeout: a worker that is asked to leave while weights load can leave.

The pipe cannot lock up. Its two directions are buffered apart, and the child's receiver always takes what comes (of DEPTH
batches none waits in the pipe), so a send never waits for a reply to be read. What remains is a child that stops
moving bytes at all, its interpreter held by native code: then a transfer ends after the no-progress timeout.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from contract.errors import GpuHardwareError, ModelError, NoProgress, OutOfMemory
from contract.errors import ModelProcessDied as KeptDying
from contract.settings import ModelSettings
from worker import model_process
from worker.memory_limit import num_memory_kills
from worker.model_process import DeviceError, DidNotFit, Encoded, LoadFailed, Raised, Ready, Work

logger = logging.getLogger(__name__)

DEPTH = 2
"""Batches in the process at once: one computing, one ready, so the device never waits for the pipe."""

LOAD_TRIES = 3
"""Starts of the process that may fail in a row for a reason that may pass."""

KILL_WAIT_S = 10.0
"""A SIGKILLed process that is still there after this hangs in its driver: nothing more can be done from here."""

CLOSE_WAIT_S = 1.0
"""For a process whose pipe is closed to end by itself."""

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
    did_exhaust_memory: bool = False
    """Killed by the kernel for the container's memory limit."""


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
    ) -> None:
        self._settings = settings
        self._device = device
        self._num_threads = num_threads
        self._no_progress_seconds = no_progress_seconds
        self._context = context or default_context()
        self._process: BaseProcess | None = None
        self._connection: Connection[Any, Any]
        self._is_loaded = False
        self._unsent: deque[Work] = deque()
        self._in_flight = 0
        self._died: deque[Died] = deque()
        self._waiting_since = 0.0
        self._num_starts = 0
        self._num_failed_loads = 0
        self._num_memory_kills = 0
        """As the kernel counted when the process was started."""
        self.has_worked = False
        """Whether any batch ever came back with rows."""
        self.busy_s = 0.0
        """Seconds the model worked on batches that came back."""
        self.idle_s = 0.0
        """Seconds it waited between them; the load and the wait for the first batch are not among them."""
        self._is_first = True

    @property
    def is_loaded(self) -> bool:
        """Whether the process is there and has its model; False while it loads, and once it could not."""
        return self._is_loaded

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

    def submit(self, payloads: Sequence[Any], *, is_fp32: bool = False) -> None:
        """Hand over a batch; at most DEPTH may be in flight. Starts the process when there is none; waits for no load."""
        assert self.num_in_flight < DEPTH, "more batches in flight than the process may hold"
        if self._died:
            # Outcomes come in order, so a batch behind a dead one shares its fate; it has not been near the device.
            self._died.append(self._died[-1])
            return
        if self._process is None:
            self._spawn()
        if self._in_flight == 0:
            self._waiting_since = time.monotonic()
        self._in_flight += 1
        self._unsent.append(Work(payloads=payloads, is_fp32=is_fp32))
        if self._is_loaded:
            self._send()

    def receive(self, timeout_s: float) -> Outcome | None:
        """What became of the oldest batch; None when there is no answer within `timeout_s`.

        Raises:
            ModelError: the model can never be loaded as the spec says.
            OutOfMemory: it does not fit the device.
            GpuHardwareError: the device reported a fault no restart can mend.
            ModelProcessDied: it died while loading, several times in a row.
            NoProgress: the process hangs and cannot even be killed.
        """
        assert self.num_in_flight, "nothing was submitted"
        if not self._died and not self._is_loaded:
            self._await_load(timeout_s)
            if not self._is_loaded and not self._died:
                return None
        if self._died:
            return self._died.popleft()
        try:
            if not self._connection.poll(timeout_s):
                if time.monotonic() - self._waiting_since < self._no_progress_seconds:
                    return None
                self._bury(self._kill_hanging())
                return self._died.popleft()
            reply = self._connection.recv()
            if isinstance(reply, Encoded):
                values = model_process.from_bytes(reply, self._connection.recv_bytes())
                self._answered()
                self.has_worked = True
                self.busy_s += reply.busy_s
                self.idle_s += 0.0 if self._is_first else reply.idle_s
                self._is_first = False
                return Rows(values=values, splits=reply.splits)
        except BlockingIOError:
            self._bury(self._kill_hanging())
            return self._died.popleft()
        except (EOFError, OSError):
            self._bury(self._verdict())
            return self._died.popleft()
        if isinstance(reply, DeviceError):
            if _HARDWARE.search(reply.detail):
                raise GpuHardwareError(reply.detail)
            self._bury(Died(detail=reply.detail))
            return self._died.popleft()
        self._answered()
        assert isinstance(reply, Raised | DidNotFit), f"unknown reply {reply!r}"
        return reply

    def close(self) -> None:
        """End the process: it leaves when its pipe closes, or is killed."""
        if self._process is None:
            return
        self._connection.close()
        self._process.join(CLOSE_WAIT_S)
        self._discard()

    def _spawn(self) -> None:
        ours, theirs = self._context.Pipe()
        inherited = ours if self._context.get_start_method() == "fork" else None
        process = self._context.Process(  # type: ignore[attr-defined]
            target=model_process.serve,
            args=(theirs, inherited, self._settings, self._device, self._num_threads),
            name="model",
            daemon=True,
        )
        self._num_memory_kills = num_memory_kills()
        process.start()
        theirs.close()
        _limit_transfers(ours, self._no_progress_seconds)
        self._process, self._connection, self._is_loaded, self._is_first = process, ours, False, True
        self._waiting_since = time.monotonic()
        self._num_starts += 1

    def _await_load(self, timeout_s: float) -> None:
        """Wait for the model to have run its warm-up; then send what waited for it. A load that failed is tried again."""
        message = self._first_message(timeout_s)
        if message is None:
            return
        if isinstance(message, Ready):
            logger.info("model loaded", extra={"device": message.device, "restarts": self.num_restarts})
            self._is_loaded, self._num_failed_loads = True, 0
            self._waiting_since = time.monotonic()
            self._send()
            return
        self._discard()
        if isinstance(message, LoadFailed):
            if message.is_out_of_memory:
                raise OutOfMemory(message.detail)
            if message.is_permanent:
                raise ModelError(message.detail)
        elif message.did_exhaust_memory:
            raise OutOfMemory(f"while the model was loaded: {message.detail}")
        if _HARDWARE.search(message.detail):
            raise GpuHardwareError(message.detail)
        self._num_failed_loads += 1
        if self._num_failed_loads >= LOAD_TRIES:
            raise KeptDying(f"the model process did not start in {LOAD_TRIES} tries: {message.detail}")
        self._spawn()

    def _first_message(self, timeout_s: float) -> Ready | LoadFailed | Died | None:
        try:
            if not self._connection.poll(timeout_s):
                is_late = time.monotonic() - self._waiting_since >= self._no_progress_seconds
                return self._kill_hanging() if is_late else None
            message = self._connection.recv()
        except (EOFError, OSError):
            return self._verdict()
        assert isinstance(message, Ready | LoadFailed), f"unknown first message {message!r}"
        return message

    def _send(self) -> None:
        while self._unsent:
            try:
                self._connection.send(self._unsent.popleft())
            except BlockingIOError:
                self._bury(self._kill_hanging())
            except (BrokenPipeError, ConnectionResetError):
                self._bury(self._verdict())

    def _answered(self) -> None:
        self._in_flight -= 1
        self._waiting_since = time.monotonic()

    def _bury(self, verdict: Died) -> None:
        self._died.extend([verdict] * self._in_flight)
        self._in_flight = 0
        self._unsent.clear()
        self._discard()

    def _verdict(self) -> Died:
        """How the process died; it has closed its pipe, so its end is near if not past."""
        assert self._process is not None
        self._process.join(KILL_WAIT_S)
        code = self._process.exitcode
        if code is None:
            return self._kill_hanging()
        if code == -signal.SIGKILL and num_memory_kills() > self._num_memory_kills:
            return Died(detail="the model process was killed for the container's memory limit", did_exhaust_memory=True)
        if code < 0:
            return Died(detail=f"the model process was killed by signal {-code}", was_killed=code == -signal.SIGKILL)
        return Died(detail=f"the model process ended with exit code {code}")

    def _kill_hanging(self) -> Died:
        assert self._process is not None
        self._process.kill()
        self._process.join(KILL_WAIT_S)
        if self._process.exitcode is None:
            raise NoProgress(
                f"no batch finished for {self._no_progress_seconds:g} s and the model process cannot be killed: "
                "the device driver hangs; replace the worker on another node"
            )
        return Died(detail=f"no batch finished for {self._no_progress_seconds:g} s", did_hang=True)

    def _discard(self) -> None:
        if self._process is None:
            return
        self._connection.close()
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(KILL_WAIT_S)
        self._process, self._is_loaded = None, False


def _limit_transfers(connection: Connection[Any, Any], seconds: float) -> None:
    """Make a send or receive that moves no byte for so long raise BlockingIOError. Source: socket(7), SO_SNDTIMEO."""
    limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as end:  # options belong to the socket, not the descriptor
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
