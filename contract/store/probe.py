"""Does this store refuse what it must refuse? Asked once, before a run trusts it with its manifests.

Some stores answer 200 to a conditional put and overwrite all the same; others compare and write in two steps. A run on
either would lose commits without a sign, so it does not start.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from contract.layout import PROBE_PREFIX
from contract.store.commit import Patience
from contract.store.errors import (
    AlreadyExists,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    UnsuitableStore,
)
from contract.store.protocol import ETag, ObjectStore

NUM_RACERS = 8
"""Enough that a store which compares and writes in two steps nearly always lets several win."""

_SUITABLE = (
    "Known to work: AWS S3, Cloudflare R2, MinIO, SeaweedFS, recent Ceph RGW, Google Cloud Storage as gs://, a directory. "
    "Known not to: Garage, s3rver, 'rclone serve s3', Google Cloud Storage as s3://"
)

_REFUSALS = (AlreadyExists, PreconditionFailed)
_Put = Callable[[bytes], ETag]


def probe(
    store: ObjectStore,
    *,
    nonce: str,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    uniform: Callable[[float, float], float] = random.uniform,
) -> None:
    """Raise unless the store's conditional puts work. Takes about 25 requests, and removes what it stored.

    Args:
        store: the store under the run's own prefix.
        nonce: names this probe's keys; two probes at a time need two.
        sleep: for tests, as are the next two.
        clock: monotonic seconds.
        uniform: random number in a range.

    Raises:
        UnsuitableStore: a condition that must fail did not. Permanent; the message names the check and its meaning.
        OutcomeUnknown: the store did not answer clearly within three minutes (`contract.store.commit.BUDGET_S`).
        AccessDenied: it refuses reads or writes at all.
    """
    prefix = f"{PROBE_PREFIX}{nonce}/"
    keys = (f"{prefix}{number:03d}" for number in itertools.count())
    patience = Patience(sleep=sleep, clock=clock, uniform=uniform)
    try:
        for check in (_create_twice, _update_stale, _update_missing, _race_to_create, _race_to_update):
            _until_answered(check, store, keys, patience)
    finally:
        # A verdict is worth more than a clean prefix, and not every policy allows deletes; `cleanup` removes the rest.
        with contextlib.suppress(StoreError):
            for listed in store.list(prefix):
                store.delete(listed.key)


def _until_answered(
    check: Callable[[ObjectStore, str], None], store: ObjectStore, keys: Iterator[str], patience: Patience
) -> None:
    """Run the check, each time under a fresh key, until every answer in it was clear."""
    while True:
        key = next(keys)
        try:
            check(store, key)
        except (OutcomeUnknown, Unavailable) as error:
            patience.wait(OutcomeUnknown(error.key, error.detail))
        else:
            return


def _create_twice(store: ObjectStore, key: str) -> None:
    store.put_create(key, b"first")
    try:
        store.put_create(key, b"second")
    except AlreadyExists:
        return
    raise _unsuitable(key, "creating a key that exists succeeded", "two workers could both claim one shard")


def _update_stale(store: ObjectStore, key: str) -> None:
    stale = store.put_create(key, b"first")
    store.put_update(key, b"second", stale)
    try:
        store.put_update(key, b"third", stale)
    except PreconditionFailed:
        return
    raise _unsuitable(
        key, "a put with a stale ETag succeeded", "a worker that lost its shard could overwrite the new owner"
    )


def _update_missing(store: ObjectStore, key: str) -> None:
    etag = store.put_create(key, b"first")
    absent = f"{key}-absent"
    try:
        store.put_update(absent, b"second", etag)
    except (NotFound, PreconditionFailed):
        return
    raise _unsuitable(absent, "a put with an ETag made a key that was absent", "a deleted run could come back in parts")


def _race_to_create(store: ObjectStore, key: str) -> None:
    _race(store, key, lambda body: store.put_create(key, body), "created")


def _race_to_update(store: ObjectStore, key: str) -> None:
    etag = store.put_create(key, b"start")
    _race(store, key, lambda body: store.put_update(key, body, etag), "changed")


def _race(store: ObjectStore, key: str, put: _Put, verb: str) -> None:
    """Several threads do the same conditional put at once: one wins, and the object is the winner's."""
    barrier = threading.Barrier(NUM_RACERS)

    def run(racer: int) -> bytes | StoreError:
        body = b"racer %d" % racer
        barrier.wait()
        try:
            put(body)
        except StoreError as error:
            return error
        return body

    with ThreadPoolExecutor(NUM_RACERS) as pool:
        results = list(pool.map(run, range(NUM_RACERS)))
    winners = [result for result in results if isinstance(result, bytes)]
    if len(winners) > 1:
        raise _unsuitable(key, f"{len(winners)} of {NUM_RACERS} concurrent puts {verb} it", "commits would be lost")
    if not winners:
        # The winner's reply may be among the unknown ones: no verdict, once more.
        raise next(
            (item for item in results if isinstance(item, StoreError) and not isinstance(item, _REFUSALS)),
            OutcomeUnknown(key, "every one of the concurrent puts was refused"),
        )
    if store.get(key).body != winners[0]:
        raise _unsuitable(key, "the object is not the winner's", "commits would be lost")


def _unsuitable(key: str, seen: str, meaning: str) -> UnsuitableStore:
    return UnsuitableStore(
        key, f"{seen}: this store does not honour conditions on puts, so {meaning}. Use another store. {_SUITABLE}."
    )
