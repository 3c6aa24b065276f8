"""The child process that owns the device: receives a batch, returns rows, nothing else.

It holds no store, no manifest and no record id, so the worst a record or driver can do to it costs one batch. Receiving
and sending run in their own threads over bounded queues: the next batch is unpickled and the last rows are written to the
pipe while the device works.

Messages (both ways over one duplex pipe, in order):
    parent -> child   Work
    child -> parent   Ready | LoadFailed, then for each Work one Reply
The child ends when the pipe does, at once, whatever the model is doing: it never outlives its parent.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from contract.errors import InferenceRunError
from contract.names import ExitCode
from contract.settings import ModelSettings
from worker.models.protocol import Encoder, Rows
from worker.models.registry import load_encoder, resolved_device

QUEUE_LENGTH = 2
"""Batches waiting on either side of the device: one computing, one ready."""


@dataclass(frozen=True, slots=True)
class Work:
    """A batch."""

    payloads: Sequence[Any]
    is_fp32: bool = False
    """Second look at rows that were not finite."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and has run its warm-up."""

    device: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded or cannot run at all; the process ends."""

    detail: str
    is_permanent: bool
    is_out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows of a batch; the tensor's bytes follow in a message of their own, so they are never pickled."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    splits: tuple[int, ...] | None
    busy_s: float = 0.0
    """Seconds the model worked on this batch."""
    idle_s: float = 0.0
    """Seconds since the batch before: waiting for work, or for room to put its rows."""


@dataclass(frozen=True, slots=True)
class Raised:
    """The model raised on this batch; the process is fine."""

    detail: str


@dataclass(frozen=True, slots=True)
class DidNotFit:
    """Device or host memory was not enough for this batch; the process is fine."""

    detail: str


@dataclass(frozen=True, slots=True)
class DeviceError:
    """The device's context is unusable from here on; the process ends after saying so."""

    detail: str


def serve(
    connection: Connection,
    parents_end: Connection | None,
    settings: ModelSettings,
    device: str,
    num_threads: int | None,
) -> None:
    """Main function of the child: load, warm up, then answer batch after batch until the pipe ends.

    `parents_end` is the other end of the pipe where forking copied it into this process: left open, the pipe would
    never end here when the parent dies.
    """
    if parents_end is not None:
        parents_end.close()
    # Ctrl-C and a container's SIGTERM reach the whole group; only the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    # Before the model is loaded, so that even a load that hangs ends with the parent.
    incoming: queue.Queue[Work] = queue.Queue(QUEUE_LENGTH)
    threading.Thread(target=_receive, args=(connection, incoming), daemon=True, name="receive").start()
    chosen = device
    try:
        chosen = str(resolved_device(device))
        encoder = load_encoder(settings, device=chosen)
        encoder.warm_up()
    except (torch.OutOfMemoryError, MemoryError) as error:
        connection.send(
            LoadFailed(f"the model does not fit {chosen}: {error}", is_permanent=True, is_out_of_memory=True)
        )
        return
    except InferenceRunError as error:
        # A store that does not answer while weights are fetched may answer the next time.
        connection.send(LoadFailed(str(error), is_permanent=error.exit_code is not ExitCode.TRANSIENT))
        return
    except Exception as error:  # noqa: BLE001  (whatever a user's model raises becomes a message to the parent)
        connection.send(LoadFailed(f"{type(error).__name__}: {error}", is_permanent=not _is_device_error(error)))
        return
    connection.send(Ready(device=chosen))
    _answer(connection, encoder, incoming)


def _answer(connection: Connection, encoder: Encoder, incoming: queue.Queue[Work]) -> None:
    outgoing: queue.Queue[tuple[Any, memoryview | None] | None] = queue.Queue(QUEUE_LENGTH)
    sender = threading.Thread(target=_send, args=(connection, outgoing), daemon=True, name="send")
    sender.start()
    ended = time.monotonic()
    while True:
        work = incoming.get()
        started = time.monotonic()
        reply, body = _encode(encoder, work)
        if isinstance(reply, Encoded):
            reply = replace(reply, busy_s=time.monotonic() - started, idle_s=started - ended)
        ended = time.monotonic()
        outgoing.put((reply, body))
        if isinstance(reply, DeviceError):
            break
    outgoing.put(None)
    sender.join()


def _receive(connection: Connection, incoming: queue.Queue[Work]) -> None:
    try:
        while True:
            incoming.put(connection.recv())
    except (EOFError, OSError):
        # The parent is gone, and with it whoever could use a row. Not by way of the main thread: it may hang.
        os._exit(0)


def _send(connection: Connection, outgoing: queue.Queue[tuple[Any, memoryview | None] | None]) -> None:
    try:
        while (message := outgoing.get()) is not None:
            reply, body = message
            connection.send(reply)
            if body is not None:
                connection.send_bytes(body)
    except (BrokenPipeError, ConnectionResetError):
        # The parent is gone, and with it whoever could use these rows.
        os._exit(0)


def _encode(encoder: Encoder, work: Work) -> tuple[Any, memoryview | None]:
    try:
        rows: Rows = encoder.encode_in_fp32(work.payloads) if work.is_fp32 else encoder.encode(work.payloads)
        values = rows.values.detach().to("cpu").contiguous()
        reply, body = Encoded(shape=tuple(values.shape), dtype=values.dtype, splits=rows.splits), as_bytes(values)
    except (torch.OutOfMemoryError, MemoryError) as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return DidNotFit(str(error)), None
    except Exception as error:  # noqa: BLE001  (whatever a user's model raises becomes a message to the parent)
        detail = f"{type(error).__name__}: {error}"
        return (DeviceError(detail) if _is_device_error(error) else Raised(detail)), None
    return reply, body


def _is_device_error(error: Exception) -> bool:
    """CUDA errors are sticky: every later call in the process fails too, so only a new process helps."""
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def as_bytes(values: torch.Tensor) -> memoryview:
    """The tensor's memory without a copy; any dtype (numpy knows no bfloat16)."""
    return values.reshape(-1).view(torch.uint8).numpy().data


def from_bytes(reply: Encoded, body: bytes) -> torch.Tensor:
    """The tensor sent after `reply`."""
    if not body:
        return torch.empty(reply.shape, dtype=reply.dtype)
    return torch.frombuffer(bytearray(body), dtype=reply.dtype).reshape(reply.shape)
