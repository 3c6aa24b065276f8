"""Finding the record that a failed batch died of, and nothing more than that record.

    died            the batch runs again alone; if it dies again, its records run one by one
    raised          the batch is halved, down to single records (the process lives on, so halving is cheap)
    did not fit     halved too, and the budget that fits is remembered; so is one whose process the kernel killed for memory
    not finite      once more in fp32, alone
A record that fails twice alone is refused (three times where SIGKILL ended the process: somebody else may have sent it).
So one bad record costs at most four restarts of the model process, whatever the size of its batch: halving after each
death would cost one for every halving.

A record for which the container has too little memory is left to a larger worker, if one is to be had: this one ends,
and the controller raises the limit up to `failurePolicy.maxMemory`.

A verdict that blames a record for a death or an error waits until the process has worked on another record since: a
device, driver or model that fails on everything would otherwise send sound records to quarantine, a few with each start.

Pieces come out in file order, so that whatever has been resolved can be committed at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeGuard

import torch

from contract.errors import InferenceRunError, ModelError, ModelProcessDied, NoProgress, OutOfMemory
from contract.names import QuarantineClass
from worker.batching import Item, halves
from worker.model_client import Died, Outcome, Rows
from worker.model_process import DidNotFit, Raised

MAX_DEATHS_IN_A_ROW = 3
"""Records blamed because the process died on each, with no success between; one more, and it is not the records."""

MAX_REFUSED_AT_FIRST = 7
"""Records blamed because the model raised on each or nothing fitted, with no success ever; one more, and it is the model."""


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

    def __init__(
        self,
        run: Run,
        *,
        dtype: torch.dtype,
        max_strikes: int = 2,
        has_worked: bool = False,
        is_larger_to_be_had: bool = False,
    ) -> None:
        """Nothing has failed yet.

        Args:
            run: `run(items, is_fp32=...)` has the model process handle one batch alone.
            dtype: of stored rows.
            max_strikes: failures of a record, alone, before it is refused.
            has_worked: the process has given rows before.
            is_larger_to_be_had: a worker with more memory than this one would be started for a shard that needs it.
        """
        self._run = run
        self._dtype = dtype
        self._max_strikes = max_strikes
        self._has_worked = has_worked
        self._is_larger_to_be_had = is_larger_to_be_had
        self._waiting: list[Refused] = []
        self._num_died = 0
        self._num_refused_at_first = 0
        self.fitting_tokens: int | None = None
        """Largest budget known to fit; None = nothing has failed to fit."""

    def is_sound(self, outcome: Outcome) -> TypeGuard[Rows]:
        """Whether nothing has to be looked at again."""
        return isinstance(outcome, Rows) and bool(torch.isfinite(outcome.values).all())

    def resolve(self, items: tuple[Item, ...], outcome: Outcome, *, was_alone: bool = False) -> Iterator[Piece]:
        """Pieces of a batch with this outcome, in file order, after the verdicts that have waited for a success.

        Args:
            items: the batch.
            outcome: what became of it.
            was_alone: nothing was beside it in the process; else it may have died of the other batch.

        Raises:
            ModelProcessDied: the process dies whatever it is given.
            ModelError: the model raises whatever it is given.
            OutOfMemory: no record fits; or one does not, and a larger worker can be had.
            NoProgress: the process hangs whatever it is given.
        """
        if isinstance(outcome, Rows):
            yield from self._checked(items, outcome)
        elif isinstance(outcome, Died) and not was_alone:
            yield from self.resolve(items, self._alone(items), was_alone=True)
        elif len(items) == 1:
            yield from self._judge(items[0], outcome)
        elif isinstance(outcome, Died) and not outcome.did_exhaust_memory:
            for item in items:
                yield from self.resolve((item,), self._alone((item,)), was_alone=True)
        else:
            if not isinstance(outcome, Raised):
                self._remember_budget(items)
            for half in halves(items):
                yield from self.resolve(half, self._alone(half), was_alone=True)

    def waiting(self) -> Iterator[Refused]:
        """At the end of the range: the verdicts that no success has followed, too few to blame anything but the records."""
        verdicts, self._waiting = self._waiting, []
        self._num_died = 0
        yield from verdicts

    def _judge(self, item: Item, failure: Outcome, *, is_fp32: bool = False) -> Iterator[Piece]:
        """A single record that has failed once alone: again, until it works or has used up its strikes."""
        num_failures = 1
        while True:
            if isinstance(failure, Died) and failure.did_exhaust_memory and self._is_larger_to_be_had:
                raise OutOfMemory(f"record {item.ordinal} alone at offset {item.offset}: {failure.detail}")
            was_killed = isinstance(failure, Died) and failure.was_killed
            if num_failures >= self._max_strikes + (1 if was_killed else 0):
                break
            outcome = self._alone((item,), is_fp32=is_fp32)
            if isinstance(outcome, Rows):
                yield from self._in_fp32(item, outcome) if is_fp32 else self._checked((item,), outcome)
                return
            failure, num_failures = outcome, num_failures + 1
        self._refuse(item, failure, is_fp32=is_fp32)

    def _refuse(self, item: Item, failure: Outcome, *, is_fp32: bool) -> None:
        if isinstance(failure, Died):
            self._num_died += 1
            if self._num_died > MAX_DEATHS_IN_A_ROW:
                raise _last_word(failure)(
                    f"the model process failed on each of {self._num_died} records in a row ({failure.detail}): "
                    "not the records' fault; look at the device, its driver and the memory limit"
                )
            if failure.did_exhaust_memory:
                self._remember_budget((item,))
            kind = QuarantineClass.OUT_OF_MEMORY if failure.did_exhaust_memory else QuarantineClass.POISON_INPUT
            verdict = Refused(item, kind, failure.detail, is_costly=True)
        elif is_fp32:
            assert isinstance(failure, Raised | DidNotFit), failure
            detail = f"the row holds NaN or infinity, and fp32 cannot tell: {failure.detail}"
            verdict = Refused(item, QuarantineClass.NON_FINITE, detail)
        elif isinstance(failure, DidNotFit):
            self._remember_budget((item,))
            detail = f"{item.num_tokens} tokens do not fit alone: {failure.detail}"
            verdict = Refused(item, QuarantineClass.OUT_OF_MEMORY, detail)
            self._count_at_first(OutOfMemory, f"{detail}; free the device, or shorten the records by model.maxLength")
        else:
            assert isinstance(failure, Raised), failure
            verdict = Refused(item, QuarantineClass.POISON_INPUT, failure.detail)
            self._count_at_first(ModelError, f"the model raised {failure.detail}; mend it or its parameters")
        self._waiting.append(verdict)

    def _count_at_first(self, kind: type[InferenceRunError], detail: str) -> None:
        if self._has_worked:
            return
        self._num_refused_at_first += 1
        if self._num_refused_at_first > MAX_REFUSED_AT_FIRST:
            raise kind(f"each of the first {self._num_refused_at_first} records failed, the last: {detail}")

    def _checked(self, items: tuple[Item, ...], rows: Rows) -> Iterator[Piece]:
        """Rows that came back, less those that are not finite."""
        expected = len(items) if rows.splits is None else sum(rows.splits)
        if rows.values.ndim != 2 or len(rows.values) != expected or (rows.splits and len(rows.splits) != len(items)):
            raise ModelError(
                f"the model returned a tensor of shape {tuple(rows.values.shape)} for {len(items)} records; "
                "it must return one row for each record (or, per token, rows and their splits)"
            )
        self._has_worked = True
        yield from self.waiting()
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
                yield from self._finished(items, rows, run[0], position, starts)
                run = []
            yield from self._second_look(item)
        if run:
            yield from self._finished(items, rows, run[0], len(items), starts)

    def _second_look(self, item: Item) -> Iterator[Piece]:
        outcome = self._alone((item,), is_fp32=True)
        if isinstance(outcome, Rows):
            yield from self._in_fp32(item, outcome)
        else:
            yield from self._judge(item, outcome, is_fp32=True)

    def _in_fp32(self, item: Item, rows: Rows) -> Iterator[Piece]:
        yield from self.waiting()
        stored = rows.values.to(self._dtype)
        if not bool(torch.isfinite(rows.values).all()):
            yield Refused(item, QuarantineClass.NON_FINITE, "the row holds NaN or infinity, in fp32 too")
        elif not bool(torch.isfinite(stored).all()):
            yield Refused(
                item,
                QuarantineClass.NON_FINITE,
                f"finite in fp32 but beyond the range of {self._dtype}: set output.dtype to float32 or bfloat16",
            )
        else:
            yield Finished((item,), Rows(values=stored, splits=rows.splits))

    def _finished(
        self, items: tuple[Item, ...], rows: Rows, start: int, end: int, starts: list[int]
    ) -> Iterator[Piece]:
        """A run of sound records of a batch that was not sound all over."""
        yield from self.waiting()
        # A copy: torch.save writes the whole storage of a view, refused rows included.
        values = rows.values[starts[start] : starts[end]].clone()
        yield Finished(items[start:end], Rows(values=values, splits=rows.splits and rows.splits[start:end]))

    def _alone(self, items: tuple[Item, ...], *, is_fp32: bool = False) -> Outcome:
        return self._run(items, is_fp32=is_fp32)

    def _remember_budget(self, items: tuple[Item, ...]) -> None:
        budget = max(1, sum(item.num_tokens for item in items) // 2)
        self.fitting_tokens = budget if self.fitting_tokens is None else min(budget, self.fitting_tokens)


def _last_word(failure: Died) -> type[InferenceRunError]:
    """The error of a worker whose model process dies whatever it is given."""
    if failure.did_exhaust_memory:
        return OutOfMemory
    return NoProgress if failure.did_hang else ModelProcessDied
