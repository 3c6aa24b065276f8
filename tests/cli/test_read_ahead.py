"""Tests of reading ahead: several at a time, within the bound, each as it is."""

from __future__ import annotations

import hashlib
import threading

import pytest

from cli.read_ahead import ReadAhead
from contract.errors import Corrupt
from contract.manifest import Checkpoint
from contract.store.commit import Committer
from contract.store.memory import MemoryStore
from contract.store.protocol import Stored
from tests.make import NOW


class CountingStore(MemoryStore):
    """Knows how many reads there were at a time; they wait for each other until `num_together` have come."""

    def __init__(self, num_together: int = 1) -> None:
        super().__init__()
        self._barrier = threading.Barrier(num_together)
        self.reads: list[str] = []

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """The object, once enough others are asked for."""
        self.reads.append(key)
        self._barrier.wait(10)
        return super().get(key, start=start, end=end)


def put(store: MemoryStore, number: int, size: int = 10) -> Checkpoint:
    """An object of `size` bytes, and what a manifest says of it."""
    body = bytes([number]) * size
    key = f"data/{number}"
    store.put_create(key, body)
    return Checkpoint(
        key=key,
        number=number,
        epoch=1,
        first=number,
        next=number + 1,
        records=1,
        bytes=size,
        sha256=hashlib.sha256(body).hexdigest(),
        created_at=NOW,
        seconds=1.0,
    )


def test_reads_are_under_way_together() -> None:
    """Four that wait for each other all come: one at a time, the first would wait in vain."""
    store = CountingStore(num_together=4)
    items = [put(store, number) for number in range(4)]

    with ReadAhead(Committer(store), items, num_readers=4) as contents:
        found = [contents.take(item) for item in items]

    assert found == [bytes([number]) * 10 for number in range(4)]


def test_no_more_is_held_than_the_bound_allows() -> None:
    """By the sizes that the manifests name: the fourth is fetched when the first has been taken."""
    store = CountingStore()
    items = [put(store, number) for number in range(6)]

    with ReadAhead(Committer(store), items, max_bytes=30, num_readers=1) as contents:
        contents.take(items[0])
        contents.take(items[1])
        num_asked = len(contents._ahead)

    assert num_asked == 3
    assert set(store.reads) <= {item.key for item in items[:5]}


def test_one_that_is_larger_than_the_bound_is_fetched_alone() -> None:
    """Rather than never."""
    store = CountingStore()
    items = [put(store, number, size=100) for number in range(3)]

    with ReadAhead(Committer(store), items, max_bytes=30) as contents:
        assert [len(contents.take(item)) for item in items] == [100, 100, 100]


def test_any_order_will_do() -> None:
    """What has not been asked for yet is fetched now."""
    store = CountingStore()
    items = [put(store, number) for number in range(5)]

    with ReadAhead(Committer(store), items, max_bytes=20) as contents:
        found = [contents.take(item)[0] for item in reversed(items)]

    assert found == [4, 3, 2, 1, 0]
    assert sorted(store.reads) == sorted(item.key for item in items)


def test_damage_is_reported_of_the_very_object() -> None:
    """When it is taken; the others are not held up."""
    store = CountingStore()
    items = [put(store, number) for number in range(3)]
    store.put_overwrite(items[1].key, b"something else")

    with ReadAhead(Committer(store), items) as contents:
        first = contents.take(items[0])
        with pytest.raises(Corrupt, match="data/1"):
            contents.take(items[1])
        last = contents.take(items[2])

    assert (first[0], last[0]) == (0, 2)
