"""A user's model for tests: waits at a gate, or does harm, when it meets a record that says so.

The sequence decides: one that starts with GATE waits until the file named by `gate` exists, so a test can act while a run
is certainly in the middle; SEGV kills the process, RAISE raises, NAN returns NaN, HOG does not fit above `max_records`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch


class Gated:
    """Rows are (length, number of As, checksum) in float32: cheap, and different for different records."""

    def __init__(self, gate: str = "", max_records: int | None = None, record_seconds: float = 0.0) -> None:
        self._gate = Path(gate) if gate else None
        self._max_records = max_records
        self._record_seconds = record_seconds

    def __call__(self, values: Sequence[str]) -> torch.Tensor:
        """Rows [records, 3] of a batch."""
        if self._max_records is not None and len(values) > self._max_records:
            raise torch.OutOfMemoryError("CUDA out of memory (as said by a test)")
        if self._gate is None or not self._gate.exists():
            time.sleep(self._record_seconds * len(values))
        return torch.stack([self._row(value) for value in values])

    def _row(self, value: str) -> torch.Tensor:
        if value.startswith("SEGV"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if value.startswith("RAISE"):
            raise ValueError(f"cannot embed {value}")
        if value.startswith("NAN"):
            return torch.tensor([float("nan")] * 3)
        if value.startswith("GATE") and self._gate is not None:
            while not self._gate.exists():
                time.sleep(0.005)
        return torch.tensor([len(value), value.count("A"), sum(value.encode()) % 9973], dtype=torch.float32)


def build(gate: str = "", max_records: int | None = None, record_seconds: float = 0.0) -> Gated:
    """The factory named by `source`. A record takes `record_seconds`, to be killed meanwhile, until the gate is there."""
    return Gated(gate, max_records, record_seconds)


def always_raises(**_: object) -> Gated:
    """A factory that cannot make its model."""
    raise ValueError("no weights here (as said by a test)")
