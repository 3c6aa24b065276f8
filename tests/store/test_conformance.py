"""One suite over every backend: what the ObjectStore protocol promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from threading import Barrier

import pytest

from contract.store.errors import AlreadyExists, NotFound, PreconditionFailed, StoreError
from contract.store.local import LocalStore
from contract.store.measured import MeasuredStore
from contract.store.memory import MemoryStore
from contract.store.open import open_store
from contract.store.probe import probe
from contract.store.protocol import ETag, ObjectStore
from tests.gcs_server import FakeGcs
from tests.servers import S3Server

SERVERS = {"s3-http": "s3_server", "s3-https": "s3_tls_server", "s3-moto": "moto_server", "gs": "gcs_server"}


@pytest.fixture(params=["memory", "measured", "local", *SERVERS])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An empty store of each kind, below a prefix."""
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "measured":
        yield MeasuredStore(MemoryStore(), lambda *_: None)
    elif request.param == "local":
        yield LocalStore(tmp_path / "runs" / "one")
    else:
        server: S3Server | FakeGcs = request.getfixturevalue(SERVERS[request.param])
        server.use(monkeypatch)
        yield open_store(f"{request.param[:2]}://{server.new_bucket()}/runs/one")


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    """The listing's keys."""
    return [item.key for item in store.list(prefix)]


def test_what_is_put_is_read(store: ObjectStore) -> None:
    """A created object is read back with the ETag that its put returned."""
    etag = store.put_create("a/b.json", b"hello")

    stored = store.get("a/b.json")

    assert (stored.body, stored.etag) == (b"hello", etag)


def test_a_buffer_is_stored_whole(store: ObjectStore) -> None:
    """A BytesIO is stored from its start wherever its position is, and stays open and writable."""
    buffer = BytesIO(b"0123456789" * 30_000)
    buffer.seek(7)

    etag = store.put_create("data.pt", buffer)
    store.put_update("data.pt", buffer, etag)
    buffer.write(b"!")

    assert store.get("data.pt").body == b"0123456789" * 30_000


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    """An object without bytes exists, is listed and has an ETag."""
    etag = store.put_create("_SUCCESS", b"")

    assert store.get("_SUCCESS").etag == etag
    assert store.get("_SUCCESS", start=0, end=10).body == b""
    assert [(item.key, item.size) for item in store.list()] == [("_SUCCESS", 0)]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 4, b"0123"),
        (3, 7, b"3456"),
        (8, None, b"89"),
        (8, 100, b"89"),
        (5, 5, b""),
        (10, None, b""),
        (10, 20, b""),
        (99, 120, b""),
    ],
)
def test_ranges_are_half_open_and_cut_at_the_end(
    store: ObjectStore, start: int, end: int | None, expected: bytes
) -> None:
    """Any range, also beyond the end, gives what the object has of it and the whole object's ETag."""
    etag = store.put_create("object", b"0123456789")

    stored = store.get("object", start=start, end=end)

    assert (stored.body, stored.etag) == (expected, etag)


@pytest.mark.parametrize(("start", "end"), [(-1, None), (-5, 3), (4, 3)])
def test_a_range_that_makes_no_sense_is_the_callers_mistake(store: ObjectStore, start: int, end: int | None) -> None:
    """A negative start, or an end before the start, is a ValueError on every backend."""
    store.put_create("object", b"0123456789")

    with pytest.raises(ValueError, match="range"):
        store.get("object", start=start, end=end)


def test_an_absent_object_is_named(store: ObjectStore) -> None:
    """Reading what does not exist, in whole or in part, says which key and where it looked."""
    for span in ((0, None), (0, 0), (2, 9)):
        with pytest.raises(NotFound) as caught:
            store.get("g0001/plan.json", start=span[0], end=span[1])

        assert caught.value.key == "g0001/plan.json"
        assert store.uri in str(caught.value)


def test_create_refuses_an_existing_key(store: ObjectStore) -> None:
    """A second creation fails and changes nothing, equal bytes or not."""
    etag = store.put_create("key", b"first")

    for body in (b"second", b"first"):
        with pytest.raises(AlreadyExists):
            store.put_create("key", body)

    assert (store.get("key").body, store.get("key").etag) == (b"first", etag)


def test_update_needs_the_current_etag(store: ObjectStore) -> None:
    """An update with the current ETag succeeds once; the ETag it consumed is stale for ever."""
    first = store.put_create("key", b"one")
    second = store.put_update("key", b"two", first)

    for stale in (first, ETag("0123456789abcdef0123456789abcdef")):
        with pytest.raises(PreconditionFailed):
            store.put_update("key", b"three", stale)

    assert second != first
    assert (store.get("key").body, store.get("key").etag) == (b"two", second)


def test_update_never_makes_an_object(store: ObjectStore) -> None:
    """An update of a deleted object fails, and the object stays away."""
    etag = store.put_create("key", b"one")
    store.delete("key")

    with pytest.raises(NotFound):
        store.put_update("key", b"two", etag)

    assert keys(store) == []


def test_update_in_a_place_that_never_was(store: ObjectStore) -> None:
    """An update under a prefix nobody has used fails as well."""
    etag = store.put_create("key", b"one")

    with pytest.raises(NotFound):
        store.put_update("some/where/else", b"two", etag)

    assert keys(store) == ["key"]


def test_overwrite_asks_nothing(store: ObjectStore) -> None:
    """An unconditional put replaces whatever is there, and moves the ETag."""
    first = store.put_overwrite("scratch", b"one")
    second = store.put_overwrite("scratch", b"two")

    assert first != second
    assert store.get("scratch").body == b"two"


def test_delete_is_idempotent(store: ObjectStore) -> None:
    """Deleting an absent object, or one in an absent place, is no error; the key can be created again."""
    store.put_create("d/key", b"one")

    store.delete("d/key")
    store.delete("d/key")
    store.delete("never/was/here")

    assert keys(store) == []
    assert store.put_create("d/key", b"two")


def test_listing_is_complete_and_in_key_order(store: ObjectStore) -> None:
    """A listing has each object once, ordered by the bytes of the key: '-' before '/' before '0'."""
    names = ["b", "a/b/c", "a-b", "a/b.json", "a0", "a/b/a", "run.json", "Z", "ä"]
    for name in names:
        store.put_create(name, name.encode())

    assert keys(store) == sorted(names, key=str.encode)


def test_listing_by_prefix(store: ObjectStore) -> None:
    """A prefix selects by characters, not by path parts, and an unused one gives nothing."""
    for name in ["g0001/shards/00001.json", "g0001/shards/00002.json", "g0001/plan.json", "g00010/plan.json"]:
        store.put_create(name, b"{}")

    assert keys(store, "g0001/shards/") == ["g0001/shards/00001.json", "g0001/shards/00002.json"]
    assert keys(store, "g0001/shards/00002") == ["g0001/shards/00002.json"]
    assert keys(store, "g0001") == sorted(keys(store))
    assert keys(store, "g0001/p") == ["g0001/plan.json"]
    assert keys(store, "absent/") == []


def test_a_shallow_listing_stays_on_its_level(store: ObjectStore) -> None:
    """Unless it is deep, a listing has only what has no '/' after the prefix, whether that ends a name or not."""
    for name in ["in/a.fasta", "in/b/c.fasta", "in/b/d/e.fasta", "in/bb.fasta", "in2/f.fasta", "top.fasta"]:
        store.put_create(name, b"{}")

    assert [item.key for item in store.list(is_deep=False)] == ["top.fasta"]
    assert [item.key for item in store.list("in/", is_deep=False)] == ["in/a.fasta", "in/bb.fasta"]
    assert [item.key for item in store.list("in/b", is_deep=False)] == ["in/bb.fasta"]
    assert [item.key for item in store.list("in", is_deep=False)] == []
    assert len(keys(store)) == 6


def test_listing_tells_what_reading_tells(store: ObjectStore) -> None:
    """Size and ETag in a listing are those of the object, and the time is aware and recent."""
    store.put_create("key", b"one")
    etag = store.put_update("key", b"four", store.get("key").etag)

    (listed,) = store.list()

    assert (listed.key, listed.size, listed.etag) == ("key", 4, etag)
    assert abs(datetime.now(UTC) - listed.modified_at) < timedelta(minutes=1)
    assert listed.modified_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("kind", ["s3_uri", "gcs_uri"])
def test_listing_goes_beyond_a_page(request: pytest.FixtureRequest, kind: str) -> None:
    """More objects than one page of a listing holds (1,000) are all listed, in order."""
    store = open_store(request.getfixturevalue(kind))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: store.put_create(f"shards/{number:05d}.json", b"{}"), range(1005)))

    assert keys(store, "shards/") == [f"shards/{number:05d}.json" for number in range(1005)]


def test_odd_keys_are_keys(store: ObjectStore) -> None:
    """Blanks, signs that mean something in a URL, and letters beyond ASCII survive put, read and listing."""
    names = ["a b+c%20d&e=f?g#h.txt", "größe/Ω.json", "it's (1).pt"]
    for name in names:
        store.put_create(name, name.encode())

    assert [store.get(name).body.decode() for name in names] == names
    assert sorted(keys(store)) == sorted(names)


def test_a_race_to_create_has_one_winner(store: ObjectStore) -> None:
    """Of eight concurrent creations of one key exactly one succeeds, and the object is the winner's."""
    for turn in range(5):
        winners = race(lambda body, key=f"key-{turn}": store.put_create(key, body), turn)

        assert len(winners) == 1
        assert store.get(f"key-{turn}").body == winners[0]


def test_a_race_to_update_has_one_winner(store: ObjectStore) -> None:
    """Of eight concurrent updates from one version exactly one succeeds."""
    etag = store.put_create("key", b"start")
    for turn in range(5):
        winners = race(lambda body, seen=etag: store.put_update("key", body, seen), turn)

        assert len(winners) == 1
        assert store.get("key").body == winners[0]
        etag = store.get("key").etag


def test_the_probe_accepts_it_and_leaves_nothing(store: ObjectStore) -> None:
    """Every backend passes the probe, and the probe takes its keys away."""
    store.put_create("run.json", b"{}")

    probe(store, nonce="one")

    assert keys(store) == ["run.json"]


def race(put: Callable[[bytes], ETag], turn: int) -> list[bytes]:
    """Bodies of those of eight concurrent puts that succeeded.

    No two bodies are equal, as no two versions of a manifest are: on S3 equal bytes have equal ETags.
    """
    barrier = Barrier(8)

    def run(racer: int) -> bytes | None:
        body = b"turn %d, racer %d" % (turn, racer)
        barrier.wait()
        try:
            put(body)
        except StoreError:
            return None
        return body

    with ThreadPoolExecutor(8) as pool:
        return [body for body in pool.map(run, range(8)) if body is not None]
