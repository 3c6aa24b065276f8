"""Models of a user that do harm on purpose: `tests.models_for_tests:build`, with parameters that say which and when.

The row of a text is (length, number of As, checksum), so different texts have different rows and anybody can compute
them. `on` is a text: the harm comes when a batch holds a value that contains it, whatever else is in the batch.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def row_of(value: str) -> list[float]:
    """The row that every model here gives where it does no harm."""
    return [float(len(value)), float(value.count("A")), float(sum(value.encode()) % 9973)]


def rows_of(values: Sequence[str]) -> torch.Tensor:
    """[B, 3] in float32."""
    return torch.tensor([row_of(value) for value in values], dtype=torch.float32)


def _segfault() -> None:
    faulthandler.disable()  # pytest's: this one is meant
    ctypes.string_at(0)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit() -> None:
    os._exit(3)


def _raise() -> None:
    raise ValueError("cannot embed this (as said by a test)")


def _hang() -> None:
    while True:
        time.sleep(60)


def _hang_in_native_code() -> None:
    """As a driver call that never gives the interpreter back: no other Python thread of the process runs any more."""
    ctypes.PyDLL(None).sleep(3600)


def _run_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory (as said by a test)")


def _run_out_of_host_memory() -> None:
    raise MemoryError("no memory left (as said by a test)")


def _break_device() -> None:
    raise RuntimeError("CUDA error: device-side assert triggered (as said by a test)")


def _break_hardware() -> None:
    raise RuntimeError("CUDA error: uncorrectable ECC error encountered (as said by a test)")


HARMS: dict[str, Callable[[], None]] = {
    "segfault": _segfault,
    "kill": _kill,
    "exit": _exit,
    "raise": _raise,
    "hang": _hang,
    "native-hang": _hang_in_native_code,
    "memory": _run_out_of_memory,
    "host-memory": _run_out_of_host_memory,
    "device": _break_device,
    "hardware": _break_hardware,
}


class Harmful:
    """Does `harm` when a value contains `on` (empty: always); returns rows otherwise."""

    def __init__(self, harm: str, on: str, above_tokens: int | None, nan_on: str | None, copies: int) -> None:
        self._harm = HARMS[harm] if harm else None
        self._on = on
        self._above_tokens = above_tokens
        self._nan_on = nan_on
        self._copies = copies
        self.sample: Callable[[], list[str]] | None = None

    def __call__(self, values: Sequence[str]) -> torch.Tensor:
        """[B, 3 * copies], or harm."""
        if self._above_tokens is not None and sum(map(len, values)) > self._above_tokens:
            _run_out_of_memory()
        if self._harm is not None and any(self._on in value for value in values):
            self._harm()
        rows = rows_of(values)
        if self._nan_on is not None:
            rows[[self._nan_on in value for value in values]] = float("nan")
        return rows.repeat(1, self._copies)


def build(
    *,
    harm: str = "",
    on: str = "",
    above_tokens: int | None = None,
    nan_on: str | None = None,
    copies: int = 1,
    sample: str = "",
    starts: str = "",
) -> Harmful:
    """The factory. `sample` is what the warm-up encodes; `starts` names a file that gets a line for each start."""
    if starts:
        with Path(starts).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
    model = Harmful(harm, on, above_tokens, nan_on, copies)
    if sample:
        model.sample = lambda: [sample]
    return model


class PerToken:
    """One row (code of the letter, its position) for each letter."""

    def __call__(self, values: Sequence[str]) -> list[torch.Tensor]:
        """A tensor [letters, 2] for each value."""
        return [torch.tensor([[ord(letter), at] for at, letter in enumerate(value)]).float() for value in values]


def build_per_token() -> PerToken:
    """The factory of a model for output kind perToken."""
    return PerToken()


def build_raising() -> Harmful:
    """A factory that cannot make its model."""
    raise ValueError("no weights here (as said by a test)")


def build_dying(starts: str = "") -> Harmful:
    """A factory that kills its process; `starts` as in `build`."""
    build(starts=starts)
    _segfault()
    raise AssertionError("unreachable")


def build_out_of_memory() -> Harmful:
    """A factory whose model does not fit the device."""
    _run_out_of_memory()
    raise AssertionError("unreachable")


def build_slowly(gate: str) -> Harmful:
    """A factory that loads until the file `gate` exists."""
    while not Path(gate).exists():
        time.sleep(0.005)
    return build()


def build_hanging() -> Harmful:
    """A factory that never comes back."""
    _hang()
    raise AssertionError("unreachable")
