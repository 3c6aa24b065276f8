"""A user's model that does harm when a record says so; pods get it from a ConfigMap. It needs torch and nothing of ours.

    SEGFAULT   the model process dies of a signal
    GLUTTON    the model takes memory until the kernel ends the whole container
    HOARDER    counting its tokens takes memory until the kernel ends the container; that happens in the worker's own process
    STOUT      counting its tokens takes 700 MiB for a moment: more than a small container has left

Rows are (length, number of As), so different records have different rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

CHUNK_BYTES = 64 << 20
STOUT_BYTES = 700 << 20


def exhaust_memory(*, takes_container: bool = True) -> None:
    """Take memory until the kernel kills the container's first process, and with it the container; or whom it likes."""
    # Of the processes in a control group the kernel takes the largest, which may be the model's alone. Newer kubelets
    # let it take all of them; this is how to get the same from the others.
    if takes_container:
        Path("/proc/1/oom_score_adj").write_text("1000", encoding="ascii")
    hoard = []
    while True:
        hoard.append(bytearray(CHUNK_BYTES))


class Harmful:
    """The model. Above `max_tokens` in a batch (None = any number) it takes all memory, as an activation too large would."""

    def __init__(self, max_tokens: int | None, *, takes_container: bool) -> None:
        self._max_tokens = max_tokens
        self._takes_container = takes_container

    def __call__(self, values: Sequence[str]) -> torch.Tensor:
        """[B, 2]."""
        if any("SEGFAULT" in value for value in values):
            ctypes.string_at(0)
        if self._max_tokens is not None and sum(map(len, values)) > self._max_tokens:
            exhaust_memory(takes_container=self._takes_container)
        if any("GLUTTON" in value for value in values):
            exhaust_memory()
        return torch.tensor([[len(value), value.count("A")] for value in values], dtype=torch.float32)


def build(*, max_tokens: int | None = None, takes_container: bool = True) -> Harmful:
    """The factory that `model.source` names."""
    return Harmful(max_tokens, takes_container=takes_container)


def num_tokens(value: str) -> int:
    """What a record costs."""
    if "HOARDER" in value:
        exhaust_memory()
    if "STOUT" in value:
        Path("/proc/1/oom_score_adj").write_text("1000", encoding="ascii")
        bytearray(b"x") * STOUT_BYTES
    return len(value)


build.num_tokens = num_tokens  # type: ignore[attr-defined]  # where the worker looks for it
