"""Packing records into batches under a token budget: next-fit, in file order. Pure.

Next-fit at 16 K tokens fills a pack to 98 % and more, keeps every pack a contiguous run of records, and makes the packs a
function of (first record, budget) alone: a resume at a pack boundary makes the same packs and so the same bits. First-fit
would gain 1.5 % at most and lose all of that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from contract.names import QuarantineClass


@dataclass(frozen=True, slots=True)
class Item:
    """A record ready for the model, with what a checkpoint says of it."""

    ordinal: int
    offset: int
    next_offset: int
    position: int
    id: str
    payload: Any
    num_tokens: int
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that goes to quarantine without having been near the model."""

    item: Item
    quarantine_class: QuarantineClass
    detail: str


@dataclass(frozen=True, slots=True)
class Batch:
    """A contiguous run of records (less those refused by the reader), at least one."""

    items: tuple[Item, ...]
    is_suspect: bool = False
    """It was in flight when a worker died: it runs with nothing beside it in the model process."""
    skipped: tuple[Skipped, ...] = ()
    """Records refused by the reader behind its first one. They are settled before it is: a checkpoint of its rows covers
    their ordinals."""

    @property
    def first(self) -> int:
        """First ordinal."""
        return self.items[0].ordinal

    @property
    def next(self) -> int:
        """Ordinal after the last."""
        return self.items[-1].ordinal + 1

    @property
    def num_tokens(self) -> int:
        """Tokens of all records together."""
        return sum(item.num_tokens for item in self.items)

    @property
    def payloads(self) -> tuple[Any, ...]:
        """What the model process gets."""
        return tuple(item.payload for item in self.items)


class Packer:
    """Next-fit: a record that does not fit closes the batch and opens the next. A single record may exceed the budget."""

    def __init__(self, token_budget: int) -> None:
        if token_budget < 1:
            raise ValueError(f"token_budget must be positive, not {token_budget}")
        self._token_budget = token_budget
        self._items: list[Item] = []
        self._num_tokens = 0
        self._strikes = 0

    @property
    def is_empty(self) -> bool:
        """Whether no batch is under way."""
        return not self._items

    def add(self, item: Item, *, strikes: int = 0, is_adjacent: bool = True) -> Batch | None:
        """Take a record; returns the batch it closed, if any.

        Args:
            item: the next record in file order.
            strikes: how often it was in flight at a worker's death; from 2 on it runs alone.
            is_adjacent: False when a settled record lies between it and the one before: a batch never spans such a gap.
        """
        closed = None
        does_not_fit = self._num_tokens + item.num_tokens > self._token_budget
        if self._items and (does_not_fit or not is_adjacent or strikes != self._strikes or strikes > 1):
            closed = self.flush()
        self._items.append(item)
        self._num_tokens += item.num_tokens
        self._strikes = strikes
        return closed

    def flush(self) -> Batch | None:
        """The batch under way, if any."""
        if not self._items:
            return None
        batch = Batch(items=tuple(self._items), is_suspect=self._strikes > 0)
        self._items, self._num_tokens, self._strikes = [], 0, 0
        return batch


def halves(items: tuple[Item, ...]) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Two non-empty runs of nearly equal tokens; needs at least two records."""
    total = sum(item.num_tokens for item in items)
    seen = 0
    for position in range(1, len(items)):
        seen += items[position - 1].num_tokens
        if 2 * seen >= total or position == len(items) - 1:
            return items[:position], items[position:]
    raise ValueError("a single record cannot be halved")


def repacked(batch: Batch, token_budget: int) -> tuple[Batch, ...]:
    """The batch under a smaller budget: next-fit again, in the same order."""
    packer = Packer(token_budget)
    batches = [closed for item in batch.items if (closed := packer.add(item)) is not None]
    last = packer.flush()
    parts = [replace(part, is_suspect=batch.is_suspect) for part in (*batches, last) if part is not None]
    return replace(parts[0], skipped=batch.skipped), *parts[1:]
