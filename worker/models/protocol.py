"""The seam to models. A family has two halves, one for each process of a worker.

The preparer runs in the parent: it turns a record's value into a payload and says what it costs, and never loads a
weight. The encoder runs in the model process: it owns the device, gets a batch of payloads and returns their rows.

Shapes: B records of a batch, T tokens of all of them together, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Unusable(Exception):
    """This record cannot be given to this model; the message says why. It goes to quarantine as InvalidRecord."""


class RecordTooLong(Exception):
    """Above the maximum length under `onTooLong: quarantine`. It goes to quarantine as TooLong."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record ready for the model."""

    payload: Any
    """Picklable and compact, e.g. a uint8 array of token ids."""
    num_tokens: int
    """What it takes of a batch's token budget, at least 1."""
    is_truncated: bool = False
    """Cut to the maximum length."""


class Preparer(Protocol):
    """The parent's half. Stateless: the same value always gives the same payload."""

    def prepare(self, value: Any) -> Prepared:
        """Payload and cost of one record's value. Raises Unusable or RecordTooLong."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """What the encoder returns for a batch, on the CPU, in the order of the payloads."""

    values: torch.Tensor
    """[B, D] pooled, or [sum(splits), D] per token; of the stored dtype."""
    splits: tuple[int, ...] | None
    """Per token: how many rows each record has (B numbers). None = one each."""


class Encoder(Protocol):
    """The model process's half."""

    def warm_up(self) -> None:
        """Run a small built-in batch, so that a device or model that cannot work fails before any record is touched."""
        ...

    def encode(self, payloads: Sequence[Any]) -> Rows:
        """Rows of a batch. Rows of a record must not depend on what else is in the batch, beyond rounding.

        Raises torch.OutOfMemoryError (or MemoryError) when the batch does not fit.
        """
        ...

    def encode_in_fp32(self, payloads: Sequence[Any]) -> Rows:
        """As `encode`, computed and returned in fp32: the second look at rows that were not finite."""
        ...
