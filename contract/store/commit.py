"""Conditional puts brought to a certain end: whatever the store answers, the caller learns whether its change is there.

A reply can be lost after the put was applied. A blind retry then meets its own object and takes it for a rival's; a
blind "I lost, once more from the start" commits twice. So after every doubtful answer the writer looks for itself:

    seen                         meaning                      done here
    200                          committed                    return the new ETag
    412, or exists on create     conflict, or own lost reply  read; ours: success; else Superseded
    409                          not applied, unknown why     wait, read, decide as above
    404 on If-Match              the object was deleted       NotFound; never made again
    timeout, reset, 5xx          unknown                      wait, read; ours: success; ETag unchanged: send the same
                                                              bytes with the same If-Match (at most one of them can
                                                              ever apply); ETag moved: Superseded, lost for good
    create, unknown, key absent  not final, may still land    the same key and bytes, until settled

Waits are full jitter, 50 ms doubling up to 1 s; after 180 s in all the operation ends with OutcomeUnknown (writes) or
Unavailable (reads). What was written stays: it may be committed.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from contract.store.errors import (
    AlreadyExists,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Superseded,
    Unavailable,
)
from contract.store.protocol import Body, ETag, Listed, ObjectStore, Stored, view_of

BASE_WAIT_S = 0.05
"""About one round trip to an object store."""
MAX_WAIT_S = 1.0
"""Without a cap, losers of a race starve while winners go on."""
BUDGET_S = 180.0
"""For one operation, waits and store calls together; a call that is under way is not cut short. Long enough that a store
which is away for a minute or two costs no worker: another one would find the same store, and had to load its model first."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Committed:
    """A change of a document that is certain to have been applied."""

    etag: ETag
    """The document's ETag as last seen: what the next update must name."""
    superseded_by: Stored | None = None
    """What stands there now, if somebody changed the document after us, before our lost reply was settled. Our change
    counts; what the new version says decides how to go on (a higher epoch: fenced). None = our own bytes stand."""


class Patience:
    """The waits of one operation: full jitter under a total budget."""

    def __init__(
        self,
        *,
        budget_s: float = BUDGET_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._budget_s = budget_s
        self._sleep = sleep
        self._clock = clock
        self._uniform = uniform
        self._started_s = clock()
        self._num_attempts = 0

    def wait(self, error: StoreError) -> None:
        """Sleep before the next attempt. Once the budget is spent, raise an error of this kind: how long, how often."""
        self._num_attempts += 1
        # The exponent is bounded before the power: 2 ** 1024 is no float.
        wait_s = self._uniform(0.0, min(MAX_WAIT_S, BASE_WAIT_S * 2 ** min(self._num_attempts - 1, 16)))
        spent_s = self._clock() - self._started_s
        if spent_s + wait_s > self._budget_s:
            detail = f"gave up after {self._num_attempts} attempts in {spent_s:.0f} s; last: {error.detail}"
            raise type(error)(error.key, detail) from error
        self._sleep(wait_s)


class Committer:
    """Settles the outcome of puts to one store. Holds no state between calls; threads may share it.

    Every method may raise AccessDenied (permanent).
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        budget_s: float = BUDGET_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`budget_s` is for one operation."""
        self.store = store
        self._patience = partial(Patience, budget_s=budget_s, sleep=sleep, clock=clock, uniform=uniform)

    def create_immutable(self, key: str, body: Body) -> ETag:
        """Store an object that is never changed afterwards. Equal bytes under the key count as ours.

        Raises:
            Superseded: other bytes are there.
            OutcomeUnknown: not settled in time; the object may exist. Keep it.
        """
        return self._create(key, body, lambda _: False).etag

    def create_document(self, key: str, body: Body, *, commit_id: str) -> Committed:
        """Store the first version of a JSON document whose `history` holds `commit_id`.

        Raises:
            Superseded: somebody else's document is there.
            OutcomeUnknown: not settled in time; the document may exist.
        """
        return self._create(key, body, lambda stored: _is_in_history(commit_id, stored.body))

    def update_document(self, key: str, body: Body, etag: ETag, *, commit_id: str) -> Committed:
        """Replace the version of a JSON document with ETag `etag` by one whose `history` holds `commit_id`.

        Raises:
            Superseded: somebody else changed it first; ours can never land.
            NotFound: the document was deleted. Stop; never make it again.
            OutcomeUnknown: not settled in time; the change may be applied.
        """
        patience = self._patience()
        while True:
            try:
                return Committed(self.store.put_update(key, body, etag))
            except PreconditionFailed as error:
                doubt: StoreError = error
            except OutcomeUnknown as error:
                doubt = error
                patience.wait(error)
            current = self._read_back(patience, key)
            mine = _recognised(current, body, lambda stored: _is_in_history(commit_id, stored.body))
            if mine is not None:
                return mine
            if current.etag != etag:
                raise Superseded(key, "changed by somebody else", current) from doubt
            if isinstance(doubt, PreconditionFailed):
                patience.wait(OutcomeUnknown(key, f"refused ({doubt.detail}), yet the ETag reads unchanged"))

    def read(self, key: str) -> Stored:
        """The object; waits out a store that does not answer.

        Raises:
            NotFound: no such object.
            Unavailable: no answer within the budget.
        """
        return patiently(self._patience(), lambda: self.store.get(key))

    def list(self, prefix: str = "") -> list[Listed]:
        """The listing, complete; waits out a store that does not answer. Raises Unavailable."""
        return patiently(self._patience(), lambda: list(self.store.list(prefix)))

    def delete(self, key: str) -> None:
        """Remove the object; waits out a store that does not answer. Raises Unavailable."""
        patiently(self._patience(), lambda: self.store.delete(key))

    def _create(self, key: str, body: Body, is_mine: Callable[[Stored], bool]) -> Committed:
        patience = self._patience()
        while True:
            try:
                return Committed(self.store.put_create(key, body))
            except AlreadyExists as error:
                doubt: StoreError = error
            except OutcomeUnknown as error:
                doubt = error
                patience.wait(error)
            try:
                current = self._read_back(patience, key)
            except NotFound:
                # Not final: an earlier attempt may still land, so only these bytes under this key are safe.
                if isinstance(doubt, AlreadyExists):
                    patience.wait(OutcomeUnknown(key, f"refused ({doubt.detail}), yet there is nothing to read"))
                continue
            mine = _recognised(current, body, is_mine)
            if mine is None:
                raise Superseded(key, "made by somebody else", current) from doubt
            return mine

    def _read_back(self, patience: Patience, key: str) -> Stored:
        """The object after a doubtful put; to the writer a store that cannot be read means an unknown outcome."""
        while True:
            try:
                return self.store.get(key)
            except Unavailable as error:
                patience.wait(OutcomeUnknown(key, f"put, then unreadable: {error.detail}"))


def _recognised(current: Stored, body: Body, is_mine: Callable[[Stored], bool]) -> Committed | None:
    """What `current` says about our put of `body`: None = it is not (or not yet) there."""
    with view_of(body) as view:
        if view == current.body:
            return Committed(current.etag)
    return Committed(current.etag, superseded_by=current) if is_mine(current) else None


def _is_in_history(commit_id: str, body: bytes) -> bool:
    try:
        document = json.loads(body)
    except ValueError:
        return False  # unreadable, so not ours; the caller finds out what it is from Superseded.current
    return isinstance(document, dict) and commit_id in document.get("history", ())


def patiently(patience: Patience, call: Callable[[], T]) -> T:
    """What `call` returns; waits out a store that does not answer. Raises Unavailable once the patience ends."""
    while True:
        try:
            return call()
        except Unavailable as error:
            patience.wait(error)
