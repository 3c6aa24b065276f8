"""Which shard to try next, what of it is left to do, and where to begin reading. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from contract.manifest import ShardManifest
from contract.ranges import Ranges


def claim_order(num_shards: int, *, worker_index: int, num_workers: int) -> tuple[int, ...]:
    """All shards, beginning at this worker's place in the plan: workers that start together do not meet."""
    if num_shards == 0:
        return ()
    start = (worker_index * num_shards // max(num_workers, 1)) % num_shards
    return tuple((start + step) % num_shards for step in range(num_shards))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Where reading begins, and with which ordinal."""

    first_ordinal: int
    offset: int | None
    """None = the start of the range."""


def resume_point(manifest: ShardManifest) -> Resume:
    """The furthest checkpoint end below which every record is settled; the start of the range when there is none.

    Records settled beyond it are read again and skipped; nothing is computed twice.
    """
    settled = manifest.settled
    reach = settled[0][1] if settled and settled[0][0] == 0 else 0
    ends = [
        (item.next, item.next_offset)
        for item in manifest.checkpoints
        if item.next <= reach and item.next_offset is not None
    ]
    if not ends:
        return Resume(first_ordinal=0, offset=None)
    ordinal, offset = max(ends)
    return Resume(first_ordinal=ordinal, offset=offset)


class Todo:
    """Answers, for each ordinal of a shard, whether it is settled and how often it was struck. Ordinals must not fall."""

    def __init__(self, manifest: ShardManifest) -> None:
        self._settled: Ranges = manifest.settled
        self._starts = [start for start, _ in self._settled]
        self._strikes = manifest.strikes

    def is_settled(self, ordinal: int) -> bool:
        """Done or quarantined."""
        place = bisect_right(self._starts, ordinal) - 1
        return place >= 0 and ordinal < self._settled[place][1]

    def strikes(self, ordinal: int) -> int:
        """Deaths of a worker with this record in flight."""
        return next((item.count for item in self._strikes if item.first <= ordinal < item.next), 0)
