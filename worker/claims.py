"""Taking a shard and giving it back.

A claim is a conditional put, so of any number of workers exactly one gets it. There are no clock-based leases: a shard
stays its owner's until the owner gives it back, or until the controller, which knows that the pod is gone, does.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from contract import layout, manifest, transitions
from contract.manifest import Attempt, Failure, Owner, ShardManifest, ShardStatus
from contract.names import FailureClass
from contract.plan import Plan, Shard
from contract.store.commit import Committer
from contract.store.errors import Superseded
from contract.store.protocol import ETag
from worker.held_shard import HeldShard
from worker.shards import claim_order

logger = logging.getLogger(__name__)

READERS = 16
"""Manifests read at once. A worker that comes late meets thousands of final ones before an open one, at 30 ms each."""


@dataclass(frozen=True, slots=True)
class NothingToClaim:
    """No shard can be claimed now."""

    next_at: datetime | None
    """When a shard that waits out its backoff can be; None = there is none."""


class Claims:
    """Claims shards of one plan for one worker."""

    def __init__(
        self,
        committer: Committer,
        plan: Plan,
        owner: Owner,
        *,
        worker_index: int,
        num_workers: int,
        memory_bytes: int | None = None,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._committer = committer
        self._memory_bytes = memory_bytes
        self._plan = plan
        self._owner = owner
        self._order = partial(claim_order, worker_index=worker_index, num_workers=num_workers)
        self._now = now
        self._new_id = new_id
        self._untouched: deque[Shard] = deque()
        """Those without a manifest when last listed, from this worker's place among them onwards."""
        self._final: set[int] = set()

    def claim_next(self) -> HeldShard | NothingToClaim:
        """Take the first claimable shard from this worker's place in the plan onwards.

        A listing tells which shards have no manifest yet. It serves until it is used up or somebody was faster, so a
        worker lists a few times, not once for each claim. Final manifests are remembered and never read again.
        """
        # Untouched shards first: their claim needs no read, and a shard that was given back may be waiting for its cause
        # to pass.
        is_current = False
        while self._untouched or not is_current:
            held = self._claim_first(self._untouched.popleft()) if self._untouched else None
            if held is not None:
                return held
            # Whoever was faster here may have been so at the next ones too.
            self._untouched = self._list_untouched()
            is_current = True
        return self._claim_pending(self._order(len(self._plan.shards)))

    def _list_untouched(self) -> deque[Shard]:
        prefix = layout.build_shards_prefix(self._plan.generation)
        existing = {
            parsed[1]
            for entry in self._committer.list(prefix)
            if (parsed := layout.parse_shard_key(entry.key)) is not None
        }
        left = [shard for shard in self._plan.shards if shard.shard not in existing]
        return deque(left[place] for place in self._order(len(left)))

    def _claim_first(self, shard: Shard) -> HeldShard | None:
        commit_id = self._new_id()
        proposed = transitions.first_claim(
            shard, generation=self._plan.generation, owner=self._owner, commit_id=commit_id, now=self._now()
        )
        key = layout.build_shard_key(self._plan.generation, shard.shard)
        try:
            outcome = self._committer.create_document(key, manifest.to_json(proposed), commit_id=commit_id)
        except Superseded:
            return None
        return None if outcome.superseded_by else self._held(proposed, outcome.etag)

    def _claim_pending(self, numbers: Iterable[int]) -> HeldShard | NothingToClaim:
        next_at: datetime | None = None
        for number, current, etag in self._read_all([item for item in numbers if item not in self._final]):
            if current.is_final:
                self._final.add(number)
            elif self._is_beyond_memory(current):
                continue  # the controller starts a larger worker for it
            elif manifest.is_claimable(current, self._now()):
                held = self._claim_again(current, etag)
                if held is not None:
                    return held
            elif current.status is ShardStatus.PENDING and current.not_before is not None:
                next_at = min(next_at, current.not_before) if next_at else current.not_before
        return NothingToClaim(next_at)

    def _is_beyond_memory(self, current: ShardManifest) -> bool:
        needed = current.hints.memory_bytes
        return needed is not None and self._memory_bytes is not None and needed > self._memory_bytes

    def _read_all(self, numbers: list[int]) -> Iterator[tuple[int, ShardManifest, ETag]]:
        """The manifests of these shards, in this order, read a few ahead at once; ends when nobody asks on."""
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(numbers), READERS):
                some = numbers[start : start + READERS]
                for number, (current, etag) in zip(some, pool.map(self._read, some), strict=True):
                    yield number, current, etag

    def _read(self, number: int) -> tuple[ShardManifest, ETag]:
        key = layout.build_shard_key(self._plan.generation, number)
        stored = self._committer.read(key)
        return manifest.from_json(stored.body, where=key), stored.etag

    def _claim_again(self, current: ShardManifest, etag: ETag) -> HeldShard | None:
        key = layout.build_shard_key(current.generation, current.shard)
        commit_id = self._new_id()
        proposed = transitions.claimed(
            current,
            owner=self._owner,
            commit_id=commit_id,
            now=self._now(),
            lost_keys=self._lost_keys(current),
        )
        problem = manifest.invariants(proposed, current)
        assert problem is None, f"{key}: {problem}"
        try:
            outcome = self._committer.update_document(key, manifest.to_json(proposed), etag, commit_id=commit_id)
        except Superseded:
            return None
        return None if outcome.superseded_by else self._held(proposed, outcome.etag)

    def _lost_keys(self, current: ShardManifest) -> frozenset[str]:
        """Committed checkpoints that are missing or have another size: their records, and only theirs, run again.

        A listing sees that much; what is wrong inside an object of the right size is found by `inferencerun verify`.
        """
        if not current.checkpoints:
            return frozenset()
        prefix = layout.build_shard_data_prefix(current.generation, current.shard)
        sizes = {entry.key: entry.size for entry in self._committer.list(prefix)}
        lost = frozenset(item.key for item in current.checkpoints if sizes.get(item.key) != item.bytes)
        if lost:
            logger.warning(
                "checkpoints lost, their records run again", extra={"shard": current.shard, "keys": sorted(lost)}
            )
        return lost

    def _held(self, current: ShardManifest, etag: ETag) -> HeldShard:
        logger.info("claimed", extra={"shard": current.shard, "epoch": current.epoch})
        return HeldShard(committer=self._committer, new_id=self._new_id, current=current, etag=etag)


def give_back(
    held: HeldShard,
    *,
    failure_class: FailureClass,
    evidence: str,
    now: datetime,
    failure: Failure | None = None,
    is_counted: bool = False,
) -> None:
    """Release a shard that this worker holds: on drain (nothing is charged), or, with `failure`, for good.

    `is_counted`: the end is none that passes by itself, though nothing is charged to this shard.

    Raises what HeldShard.commit raises.
    """
    owner = held.current.owner
    if owner is None:
        return
    claimed_at = held.current.claimed_at
    attempt = Attempt(
        pod=owner.pod,
        uid=owner.uid,
        node=owner.node,
        epoch=held.current.epoch,
        failure_class=failure_class,
        evidence=evidence,
        counted=is_counted or failure is not None,
        ended_at=now,
        held_seconds=round((now - claimed_at).total_seconds(), 3) if claimed_at else None,
    )
    held.commit(
        lambda current, commit_id: transitions.released(current, attempt=attempt, commit_id=commit_id, failure=failure)
    )
