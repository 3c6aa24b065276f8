"""The termination-message file: overwritten in place before each batch and at the end.

In place, with one write and padding instead of a truncation: the kubelet bind-mounts the file (a rename would miss it),
and a SIGKILL between truncation and write would leave nothing to read.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from contract.flight import Flight, to_text


class FlightRecorder:
    """Keeps the last state of this worker where it can be read after any death."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._length = os.fstat(self._descriptor).st_size
        self.flight = Flight()

    def record(self, flight: Flight) -> None:
        """Overwrite the file; a few microseconds, no fsync (the page cache outlives the process)."""
        self.flight = flight
        content = to_text(flight).encode()
        padded = content.ljust(self._length)
        self._length = max(self._length, len(content))
        os.pwrite(self._descriptor, padded, 0)

    def close(self) -> None:
        """Close the file; what it says stays."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
