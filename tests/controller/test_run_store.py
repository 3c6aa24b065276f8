"""controller.run_store: manifests between two looks, and shards of many dead workers."""

from __future__ import annotations

import itertools
import threading

from contract import layout, manifest
from contract.store.commit import Committer
from contract.store.memory import MemoryStore
from contract.store.protocol import Body, ETag, Stored
from controller.actions import ReleaseShard
from controller.run_store import READERS, RunStore
from tests import make

PATIENCE_S = 20.0


class Store(MemoryStore):
    """Notes which keys are read; conditional puts wait for `num_meeting` of them to come together."""

    def __init__(self, num_meeting: int = 1) -> None:
        super().__init__()
        self.read: list[str] = []
        self._met = threading.Barrier(num_meeting, timeout=PATIENCE_S)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """See ObjectStore."""
        self.read.append(key)
        return super().get(key, start=start, end=end)

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        self._met.wait()
        return super().put_update(key, body, etag)


def run_store(store: Store) -> RunStore:
    """The controller's side of it."""
    ids = itertools.count()
    return RunStore(Committer(store), new_id=lambda: f"id-{next(ids)}")


def put_held(store: Store, shard: int, *, generation: int = 1) -> str:
    """A held shard in the store; returns its key."""
    key = layout.build_shard_key(generation, shard)
    store.put_overwrite(key, manifest.to_json(make.held(shard)))
    return key


def release(shard: int, **changes: int) -> ReleaseShard:
    """What the planner decides for the dead owner of a shard."""
    held = make.held(shard)
    assert held.owner is not None
    seen = {"epoch": held.epoch, "version": held.version, **changes}
    return ReleaseShard(shard=shard, uid=held.owner.uid, attempt=make.attempt(held), **seen)


def test_a_manifest_is_read_again_only_when_it_has_changed() -> None:
    """The listing tells by its ETag."""
    store = Store()
    keys = [put_held(store, shard) for shard in range(3)]
    found = run_store(store)
    first = found.read_manifests(1)
    store.read.clear()
    put_held(store, 1)

    again = found.read_manifests(1)

    assert list(first) == list(again) == [0, 1, 2]
    assert store.read == [keys[1]]


def test_manifests_of_a_generation_that_is_left_are_let_go_of() -> None:
    """A run of ten thousand shards that is restarted ten times keeps those of one generation in memory."""
    store = Store()
    put_held(store, 0)
    put_held(store, 1)
    left = put_held(store, 0, generation=2)
    found = run_store(store)
    found.read_manifests(1)
    found.read_manifests(2)

    assert list(found._seen) == [left]


def test_shards_of_many_dead_are_released_at_once() -> None:
    """No put waits for the one before it: here each waits for all the others."""
    store = Store(READERS)
    for shard in range(READERS):
        put_held(store, shard)
    found = run_store(store)
    found.read_manifests(1)

    assert found.release_all([release(shard) for shard in range(READERS)], 1)
    assert all(item.owner is None for item in found.read_manifests(1).values())


def test_a_shard_that_has_moved_on_keeps_no_other_from_being_released() -> None:
    """The decision was made on an older version of one: that is told, so that the rest of it is not carried out."""
    store = Store()
    for shard in range(3):
        put_held(store, shard)
    found = run_store(store)
    found.read_manifests(1)

    assert not found.release_all([release(0), release(1, version=99), release(2)], 1)
    assert [item.owner is None for item in found.read_manifests(1).values()] == [True, False, True]
