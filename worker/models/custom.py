"""`torch`: any model of the user's, as `module:callable` (docs/bring-your-own-model.md).

The callable is called once, in the model process, with `parameters`; what it returns is called with the values of a
batch and returns their rows. The parent imports the module too, so that a misspelt source fails before any record is
touched, but never calls it: it only looks for a `num_tokens` attribute there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from contract.errors import ModelError
from contract.settings import ModelSettings, RowKind
from worker.models.options import compute_dtype, fitted, memory_errors, stored_dtype
from worker.models.protocol import Prepared, Rows, Unusable


def load_factory(source: str) -> Callable[..., Any]:
    """The callable that `source` names, from the working directory or PYTHONPATH. Raises ModelError."""
    module_name, _, name = source.partition(":")
    # Last, so that a file beside the spec can never hide an installed package.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise ModelError(
            f"model.source: {source} cannot be imported ({error!r}); the module must be in the working directory, on "
            f"PYTHONPATH or installed"
        ) from error
    if not callable(factory):
        raise ModelError(f"model.source: {source} is {type(factory).__name__}, not callable")
    return factory  # type: ignore[no-any-return]  # getattr


class CustomPreparer:
    """The parent's half: values pass as they are."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._num_tokens: Callable[[Any], int] = getattr(load_factory(settings.source), "num_tokens", _num_items)

    def prepare(self, value: Any) -> Prepared:
        """The value, cut to `max_length` when that is set and it is text, bytes or a list.

        Raises Unusable where the user's own `num_tokens` fails: the record is to blame, unless all are.
        """
        is_truncated = False
        if isinstance(value, str | bytes | list):
            value, is_truncated = fitted(value, self._settings, default_max_length=None)
        return Prepared(payload=value, num_tokens=max(1, self._cost(value)), is_truncated=is_truncated)

    def _cost(self, value: Any) -> int:
        try:
            return int(self._num_tokens(value))  # from NumPy too, whose numbers no manifest could hold
        except Exception as error:
            raise Unusable(f"num_tokens of the model raised {type(error).__name__}: {error}") from error


def _num_items(value: Any) -> int:
    """Letters of a text, items of a list; anything else is one token."""
    return len(value) if isinstance(value, str | bytes | list) else 1


class CustomEncoder:
    """The model process's half. `precision` below fp32 is autocast; the weights stay as the callable made them."""

    def __init__(self, settings: ModelSettings, device: torch.device) -> None:
        self._source = settings.source
        self._device = device
        self._compute_dtype = compute_dtype(settings)
        self._stored_dtype = stored_dtype(settings)
        self._kind = settings.kind
        if device.type == "cuda":
            torch.cuda.set_device(device)  # so that "cuda", in the user's code, is this worker's device
        factory = load_factory(settings.source)
        try:
            model = factory(**settings.parameters)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise ModelError(f"{settings.source} failed with parameters {settings.parameters}: {error!r}") from error
        if isinstance(model, torch.nn.Module):
            model = model.eval().to(device)
        if not callable(model):
            raise ModelError(f"{settings.source} returned {type(model).__name__}; it must return a callable model")
        self._model = model

    def warm_up(self) -> None:
        """Encodes the model's own `sample()`, when it has one."""
        sample = getattr(self._model, "sample", None)
        if sample is not None:
            self.encode(list(sample()))

    def encode(self, payloads: Sequence[Any]) -> Rows:
        """The model's rows in the stored dtype. Raises ModelError when they do not match the batch."""
        return self._rows(payloads, self._compute_dtype, self._stored_dtype)

    def encode_in_fp32(self, payloads: Sequence[Any]) -> Rows:
        """As `encode`, without autocast, in float32."""
        return self._rows(payloads, torch.float32, torch.float32)

    @torch.inference_mode()
    def _rows(self, payloads: Sequence[Any], dtype: torch.dtype, stored: torch.dtype) -> Rows:
        is_reduced = dtype != torch.float32
        with (
            memory_errors(),
            torch.autocast(self._device.type, dtype if is_reduced else None, enabled=is_reduced),
        ):
            returned = self._model(list(payloads))
            if self._kind is RowKind.POOLED:
                values, splits = self._pooled(returned, len(payloads)), None
            else:
                values, splits = self._per_token(returned, len(payloads))
            rows = values.to(stored).cpu()
            # They are sent while the model works on the next batch, which it may write to the same memory.
            return Rows(values=rows.clone() if rows is returned else rows, splits=splits)

    def _pooled(self, returned: Any, num_records: int) -> torch.Tensor:
        if not isinstance(returned, torch.Tensor) or returned.ndim != 2:
            raise ModelError(f"{self._source} must return a tensor [records, width], not {_shown(returned)}")
        if len(returned) != num_records:
            raise ModelError(f"{self._source} returned {len(returned)} rows for {num_records} records")
        return returned

    def _per_token(self, returned: Any, num_records: int) -> tuple[torch.Tensor, tuple[int, ...]]:
        if not isinstance(returned, list | tuple) or any(
            not isinstance(rows, torch.Tensor) or rows.ndim != 2 for rows in returned
        ):
            raise ModelError(
                f"{self._source} must return a list of tensors [tokens, width] for output kind perToken, "
                f"not {_shown(returned)}"
            )
        if len(returned) != num_records:
            raise ModelError(f"{self._source} returned rows of {len(returned)} records for {num_records} records")
        return torch.cat(list(returned)), tuple(len(rows) for rows in returned)


def _shown(returned: Any) -> str:
    if isinstance(returned, torch.Tensor):
        return f"a tensor {tuple(returned.shape)}"
    return type(returned).__name__
