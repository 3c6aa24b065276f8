"""Finding the record that a failed batch died of, and nothing more than that record.

    died            the batch runs again alone; if it dies again, its records run one by one
    raised          the batch is halved, down to single records (the process lives on, so halving is cheap)
    did not fit     halved too, and the budget that fits is remembered
    not finite      once more in fp32, alone
A record that fails twice alone is refused (three times where SIGKILL ended the process: somebody else may have sent it).
So one bad record costs at most four restarts of the model process, whatever the size of its batch: halving after each
death would cost one for every halving.

Pieces come out in file order, so that whatever has been resolved can be committed at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeGuard

import torch

from contract.errors import ModelError, ModelProcessDied, NoProgress
from contract.names import QuarantineClass
from worker.batching import Item, halves
from worker.model_client import Died, Outcome, Rows
from worker.model_process import DidNotFit, Raised

MAX_DEATHS_IN_A_ROW = 3
"""Records refused because the process died on each, with no success between: then it is not the records."""

MAX_RAISED_AT_FIRST = 8
"""Records refused because the model raised on each, with no success ever: then it is the model."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Records with their rows."""

    items: tuple[Item, ...]
    rows: Rows


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that goes to quarantine."""

    item: Item
    quarantine_class: QuarantineClass
    detail: str
    is_costly: bool = False
    """The verdict cost restarts of the model process."""


Piece = Finished | Refused
Run = Callable[..., Outcome]


class Isolator:
    """Resolves failed batches; remembers the budget that fits and whether anything has ever worked."""

    def __init__(self, run: Run, *, dtype: torch.dtype, max_strikes: int = 2) -> None:
        """Args: run(payloads, is_fp32=False) has the model process handle one batch alone."""
        self._run = run
        self._dtype = dtype
        self._max_strikes = max_strikes
        self._deaths_in_a_row = 0
        self._num_raised_at_first: int | None = 0
        self.fitting_tokens: int | None = None
        """Largest budget known to fit; None = nothing has failed to fit."""

    def is_sound(self, outcome: Outcome) -> TypeGuard[Rows]:
        """Whether nothing has to be looked at again."""
        return isinstance(outcome, Rows) and bool(torch.isfinite(outcome.values).all())

    def resolve(self, items: tuple[Item, ...], outcome: Outcome) -> Iterator[Piece]:
        """Pieces of a batch with this outcome, in file order.

        Raises:
            ModelProcessDied: the process dies whatever it is given.
            ModelError: the model raises whatever it is given.
            NoProgress: the process hangs whatever it is given.
        """
        if isinstance(outcome, Rows):
            yield from self._checked(items, outcome)
        elif len(items) == 1:
            yield from self._judge(items[0], outcome)
        elif isinstance(outcome, Died):
            again = self._alone(items)
            if isinstance(again, Died):
                for item in items:
                    yield from self.resolve((item,), self._alone((item,)))
            else:
                yield from self.resolve(items, again)
        else:
            if isinstance(outcome, DidNotFit):
                self._remember_budget(items)
            for half in halves(items):
                yield from self.resolve(half, self._alone(half))

    def _judge(self, item: Item, failure: Outcome) -> Iterator[Piece]:
        """A single record that has failed once alone: again, until it works or has used up its strikes."""
        num_failures = 1
        while True:
            was_killed = isinstance(failure, Died) and failure.was_killed
            if num_failures >= self._max_strikes + (1 if was_killed else 0):
                break
            outcome = self._alone((item,))
            if isinstance(outcome, Rows):
                yield from self._checked((item,), outcome)
                return
            failure, num_failures = outcome, num_failures + 1
        yield self._refused(item, failure)

    def _refused(self, item: Item, failure: Outcome) -> Refused:
        if isinstance(failure, Died):
            self._deaths_in_a_row += 1
            if self._deaths_in_a_row > MAX_DEATHS_IN_A_ROW:
                kind = NoProgress if failure.did_hang else ModelProcessDied
                raise kind(
                    f"the model process failed on each of {self._deaths_in_a_row} records in a row ({failure.detail}): "
                    "not the records' fault; look at the device, its driver and the memory limit"
                )
            return Refused(item, QuarantineClass.POISON_INPUT, failure.detail, is_costly=True)
        if isinstance(failure, DidNotFit):
            self._remember_budget((item,))
            return Refused(
                item, QuarantineClass.OUT_OF_MEMORY, f"{item.num_tokens} tokens do not fit alone: {failure.detail}"
            )
        assert isinstance(failure, Raised), failure
        if self._num_raised_at_first is not None:
            self._num_raised_at_first += 1
            if self._num_raised_at_first >= MAX_RAISED_AT_FIRST:
                raise ModelError(
                    f"the model raised on each of the first {MAX_RAISED_AT_FIRST} records, last: {failure.detail}; "
                    "mend the model or its parameters"
                )
        return Refused(item, QuarantineClass.POISON_INPUT, failure.detail)

    def _checked(self, items: tuple[Item, ...], rows: Rows) -> Iterator[Piece]:
        """Rows that came back, less those that are not finite."""
        self._deaths_in_a_row = 0
        self._num_raised_at_first = None
        expected = len(items) if rows.splits is None else sum(rows.splits)
        if rows.values.ndim != 2 or len(rows.values) != expected or (rows.splits and len(rows.splits) != len(items)):
            raise ModelError(
                f"the model returned a tensor of shape {tuple(rows.values.shape)} for {len(items)} records; "
                "it must return one row for each record (or, per token, rows and their splits)"
            )
        if self.is_sound(rows):
            yield Finished(items, rows)
            return
        splits = rows.splits or (1,) * len(items)
        starts = [0]
        for split in splits:
            starts.append(starts[-1] + split)
        run: list[int] = []
        for position, item in enumerate(items):
            if bool(torch.isfinite(rows.values[starts[position] : starts[position + 1]]).all()):
                run.append(position)
                continue
            if run:
                yield _slice(items, rows, run[0], position, starts)
                run = []
            yield from self._second_look(item)
        if run:
            yield _slice(items, rows, run[0], len(items), starts)

    def _second_look(self, item: Item) -> Iterator[Piece]:
        outcome = self._alone((item,), is_fp32=True)
        if not isinstance(outcome, Rows):
            yield from self._judge(item, outcome)
            return
        if not bool(torch.isfinite(outcome.values).all()):
            yield Refused(item, QuarantineClass.NON_FINITE, "the row holds NaN or infinity, in fp32 too")
            return
        stored = outcome.values.to(self._dtype)
        if not bool(torch.isfinite(stored).all()):
            yield Refused(
                item,
                QuarantineClass.NON_FINITE,
                f"finite in fp32 but beyond the range of {self._dtype}: set output.dtype to float32 or bfloat16",
            )
            return
        yield Finished((item,), Rows(values=stored, splits=outcome.splits))

    def _alone(self, items: tuple[Item, ...], *, is_fp32: bool = False) -> Outcome:
        return self._run(items, is_fp32=is_fp32)

    def _remember_budget(self, items: tuple[Item, ...]) -> None:
        budget = max(1, sum(item.num_tokens for item in items) // 2)
        self.fitting_tokens = budget if self.fitting_tokens is None else min(budget, self.fitting_tokens)


def _slice(items: tuple[Item, ...], rows: Rows, start: int, end: int, starts: list[int]) -> Finished:
    splits = None if rows.splits is None else rows.splits[start:end]
    return Finished(items[start:end], Rows(values=rows.values[starts[start] : starts[end]], splits=splits))
