"""What every model family reads from `ModelSettings` (dtypes, parameters, length limits), and one name for no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

from contract.errors import SpecError
from contract.settings import ModelSettings, TooLong
from worker.models.protocol import RecordTooLong

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""`precision`: what the forward pass computes in."""
STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""`dtype`: what rows are stored in."""

Sliceable = TypeVar("Sliceable", bound=str | bytes | list[Any])


def compute_dtype(settings: ModelSettings) -> torch.dtype:
    """The dtype of the forward pass; raises SpecError on an unknown `precision`."""
    return _chosen(PRECISIONS, settings.precision, "model.precision")


def stored_dtype(settings: ModelSettings) -> torch.dtype:
    """The dtype of stored rows; raises SpecError on an unknown `dtype`."""
    return _chosen(STORED_DTYPES, settings.dtype, "output.dtype")


def _chosen(known: dict[str, torch.dtype], name: str, field: str) -> torch.dtype:
    if name not in known:
        raise SpecError(f"{field}: {name!r} is unknown; choose one of {', '.join(known)}")
    return known[name]


def fitted(value: Sliceable, settings: ModelSettings, *, default_max_length: int | None) -> tuple[Sliceable, bool]:
    """The value within the length limit, and whether it was cut.

    Args:
        value: text, bytes or a list; one item is one token.
        settings: `max_length` in tokens, and what to do above it.
        default_max_length: the model's own limit, for `max_length` None; None = no limit.

    Raises:
        RecordTooLong: above the limit under `onTooLong: quarantine`.
    """
    max_length = default_max_length if settings.max_length is None else settings.max_length
    if max_length is None or len(value) <= max_length:
        return value, False
    if settings.on_too_long is TooLong.QUARANTINE:
        raise RecordTooLong(f"{len(value)} tokens, above maxLength {max_length}")
    return cast("Sliceable", value[:max_length]), True


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raises MemoryError where torch says "out of memory" by a plain RuntimeError; torch.OutOfMemoryError passes as it is.

    The CPU allocator and cuBLAS have no exception of their own (torch 2.13): the message is all there is.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if any(sign in str(error) for sign in ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")):
            raise MemoryError(str(error)) from error
        raise
