"""What a directory store promises beyond the protocol: durability's order, odd directories, and what it refuses."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from contract.store import local
from contract.store.errors import (
    AccessDenied,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    Unavailable,
    UnsuitableStore,
)
from contract.store.local import TEMPORARY_PREFIX, LocalStore
from contract.store.protocol import ETag


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store is; not made yet."""
    return tmp_path / "a" / "store"


@pytest.fixture
def store(root: Path) -> LocalStore:
    """An empty store."""
    return LocalStore(root)


def files(root: Path) -> list[str]:
    """Every file below, temporary ones too."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../x", "a/../../x", "a/..", ".", "a/./b", "a//b", "a/", "a\0b", f"a/{TEMPORARY_PREFIX}00"],
)
def test_no_key_leads_out_of_the_root(store: LocalStore, key: str) -> None:
    """A key that escapes the root, is another's alias, or names a temporary file is refused by every call."""
    for call in (
        lambda: store.get(key),
        lambda: store.put_create(key, b""),
        lambda: store.put_update(key, b"", ETag("")),
        lambda: store.put_overwrite(key, b""),
        lambda: store.delete(key),
    ):
        with pytest.raises(ValueError, match="no key"):
            call()


def test_no_listing_leads_out_of_the_root(store: LocalStore) -> None:
    """A prefix that escapes the root is refused."""
    with pytest.raises(ValueError, match="no key"):
        list(store.list("../"))


def test_names_are_the_keys(store: LocalStore, root: Path) -> None:
    """The file names below the root are the keys, and there is nothing else: no lock and no temporary file."""
    etag = store.put_create("g0001/shards/00001.json", b"one")
    store.put_update("g0001/shards/00001.json", b"two", etag)
    store.put_overwrite(".probe/x", b"")
    with pytest.raises(PreconditionFailed):
        store.put_update("g0001/shards/00001.json", b"three", etag)

    assert files(root) == [".probe/x", "g0001/shards/00001.json"]
    assert (root / "g0001/shards/00001.json").read_bytes() == b"two"


def test_opening_and_reading_make_nothing(store: LocalStore, root: Path) -> None:
    """Neither a listing, nor a failed read, update or delete makes a directory."""
    assert list(store.list("g0001/")) == []
    store.delete("g0001/x")
    for call in (lambda: store.get("g0001/x"), lambda: store.put_update("g0001/x", b"", ETag("1"))):
        with pytest.raises(NotFound):
            call()

    assert not root.exists()


def test_an_etag_never_returns(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of equal size in quick succession, on a clock that stands still, never repeat an ETag.

    Without care they would: the file system gives a freed inode number to the next file, within one tick of its clock.
    """
    real_fsync = os.fsync

    def fsync_with_old_time(descriptor: int) -> None:
        real_fsync(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.utime(descriptor, ns=(10**18, 10**18))

    monkeypatch.setattr(os, "fsync", fsync_with_old_time)
    etags = [store.put_create("key", b"0000")]
    for number in range(50):
        etags.append(store.put_update("key", b"%04d" % number, etags[-1]))

    assert len(set(etags)) == 51
    assert store.get("key").etag == etags[-1]


def test_a_file_system_without_nanoseconds_is_refused(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file's time cannot be set apart from its predecessor's, the store says so instead of risking a lost update."""
    etag = store.put_create("key", b"one")
    os.utime(Path(store.uri.removeprefix("file://"), "key"), ns=(2**62, 2**62))
    moved = store.get("key").etag
    monkeypatch.setattr(os, "utime", lambda *_arguments, **_options: None)

    with pytest.raises(UnsuitableStore, match="nanoseconds"):
        store.put_update("key", b"two", moved)

    assert etag != moved
    assert store.get("key").body == b"one"


def test_an_update_waits_for_another_in_the_same_directory(store: LocalStore, root: Path) -> None:
    """Compare and rename are one step: while another holds the directory's lock, an update does neither."""
    etag = store.put_create("d/key", b"one")
    done = threading.Event()

    def update() -> None:
        store.put_update("d/key", b"two", etag)
        done.set()

    thread = threading.Thread(target=update)
    with local._locked(root / "d"):
        thread.start()
        is_early = done.wait(0.1)
        body = store.get("d/key").body
    thread.join()

    assert not is_early
    assert body == b"one"
    assert store.get("d/key").body == b"two"


def test_a_delete_between_compare_and_rename_is_impossible(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """A delete that comes while an update holds the lock waits, and then deletes what the update wrote."""
    etag = store.put_create("d/key", b"one")
    real_replace = local._replace
    deleter = threading.Thread(target=lambda: store.delete("d/key"))
    seen: list[bool] = []

    def replace_while_somebody_deletes(*arguments: object) -> ETag:
        deleter.start()
        deleter.join(0.1)
        seen.append((root / "d/key").exists())
        return real_replace(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "_replace", replace_while_somebody_deletes)
    store.put_update("d/key", b"two", etag)
    deleter.join()

    assert seen == [True]
    assert files(root) == []


def test_an_object_deleted_while_its_update_is_written(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """An update whose object goes away before the lock is taken fails, and makes nothing."""
    etag = store.put_create("key", b"one")
    real_fsync = os.fsync

    def fsync_and_delete(descriptor: int) -> None:
        real_fsync(descriptor)
        (root / "key").unlink()

    monkeypatch.setattr(os, "fsync", fsync_and_delete)
    with pytest.raises(NotFound):
        store.put_update("key", b"two", etag)

    assert files(root) == []


def test_everything_is_flushed_before_success(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put flushes the file before it gets its name, and the directory after; new directories in their parents."""
    order: list[str] = []
    real_fsync, real_link, real_rename = os.fsync, os.link, Path.rename

    def fsync(descriptor: int) -> None:
        order.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_fsync(descriptor)

    def link(*arguments: object) -> None:
        order.append("name")
        real_link(*arguments)  # type: ignore[arg-type]

    def rename(self: Path, target: Path) -> Path:
        order.append("name")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(Path, "rename", rename)
    etag = store.put_create("d/key", b"one")
    created = order.copy()
    order.clear()
    store.put_update("d/key", b"two", etag)
    updated = order.copy()
    order.clear()
    store.delete("d/key")

    assert created == ["directory"] * 3 + ["file", "name", "directory"]
    assert updated == ["file", "name", "directory"]
    assert order == ["directory"]


def test_a_reader_keeps_what_it_opened(store: LocalStore, root: Path) -> None:
    """A file opened before an update goes on giving the old object, whole."""
    etag = store.put_create("key", b"one" * 1000)
    with (root / "key").open("rb") as file:
        store.put_update("key", b"two", etag)

        assert file.read() == b"one" * 1000


def test_temporary_files_are_no_objects(store: LocalStore, root: Path) -> None:
    """What a killed put left behind is never listed; a listing removes it once it is an hour old, and nothing else."""
    store.put_create("d/key", b"one")
    young, old, foreign = (root / "d" / name for name in (f"{TEMPORARY_PREFIX}1", f"{TEMPORARY_PREFIX}2", ".tmp-3"))
    for path in (young, old, foreign):
        path.write_bytes(b"part")
    for path in (old, foreign):
        os.utime(path, (1e9, 1e9))

    listed = [item.key for item in store.list()]

    assert listed == ["d/.tmp-3", "d/key"]
    assert (young.exists(), old.exists(), foreign.exists()) == (True, False, True)


def test_a_reader_that_may_not_delete_still_lists(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only file system an old temporary file is left alone and the listing is complete."""
    store.put_create("key", b"one")
    old = root / f"{TEMPORARY_PREFIX}1"
    old.write_bytes(b"part")
    os.utime(old, (1e9, 1e9))

    def refuse(_: Path) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert [item.key for item in store.list()] == ["key"]


def test_a_file_deleted_while_it_is_listed(store: LocalStore, root: Path) -> None:
    """A file that vanishes between the scan and its turn is left out, and the rest is listed."""
    for name in "abc":
        store.put_create(name, b"")

    listing = store.list()
    first = next(listing).key
    (root / "b").unlink()

    assert [first, *(item.key for item in listing)] == ["a", "c"]


def test_directories_are_no_objects(store: LocalStore, root: Path) -> None:
    """A directory under a key is not found, is not listed, and deleting it does nothing; neither is a file a directory."""
    store.put_create("d/key", b"one")
    (root / "empty").mkdir()

    for key in ("d", "empty", "d/key/below"):
        with pytest.raises(NotFound):
            store.get(key)
        store.delete(key)
    with pytest.raises(NotFound):
        store.put_update("d/key/below", b"", ETag("1"))
    assert [item.key for item in store.list()] == ["d/key"]


def test_a_link_to_a_file_is_an_object(store: LocalStore, root: Path, tmp_path: Path) -> None:
    """Input directories made of links are read like any other."""
    (tmp_path / "real.fasta").write_bytes(b">a\nMK\n")
    root.mkdir(parents=True)
    (root / "linked.fasta").symlink_to(tmp_path / "real.fasta")

    assert [(item.key, item.size) for item in store.list()] == [("linked.fasta", 6)]
    assert store.get("linked.fasta").body == b">a\nMK\n"


def failing(number: int) -> OSError:
    """As the kernel would raise it."""
    return OSError(number, os.strerror(number))


@pytest.fixture(params=[errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, store: LocalStore) -> Iterator[int]:
    """A file system that fails with this error at every open, with an object on it."""
    store.put_create("key", b"one")

    def refuse(*_arguments: object, **_options: object) -> int:
        raise failing(request.param)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    yield request.param
    monkeypatch.undo()


def test_errors_of_the_file_system(store: LocalStore, broken: int) -> None:
    """What no retry mends is AccessDenied; a full disk or an I/O error may pass: Unavailable or OutcomeUnknown."""
    is_permanent = broken in {errno.EACCES, errno.EROFS}
    for call in (lambda: store.get("key"), lambda: list(store.list()), lambda: store.delete("key")):
        with pytest.raises(AccessDenied if is_permanent else Unavailable):
            call()
    for call in (
        lambda: store.put_create("new", BytesIO(b"x")),
        lambda: store.put_update("key", b"x", ETag("1")),
        lambda: store.put_overwrite("key", b"x"),
    ):
        with pytest.raises(AccessDenied if is_permanent else OutcomeUnknown, match=os.strerror(broken)):
            call()


def test_a_place_taken_by_a_file_is_refused(store: LocalStore) -> None:
    """A key below an object cannot be stored in a directory, and no retry mends that: the message says what does."""
    store.put_create("a", b"")

    with pytest.raises(AccessDenied, match=r"Not a directory: .*; take another path"):
        store.put_create("a/b", b"")


def test_short_writes_are_completed(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes only a part of a buffer at a time still gets all of it."""
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, view: real_write(descriptor, view[:7]))

    store.put_create("key", BytesIO(bytes(range(256))))

    assert store.get("key").body == bytes(range(256))


def test_the_uri_is_the_path_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is made absolute once, links are not resolved, and the URI has no trailing slash."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)

    assert LocalStore("link/x/").uri == f"file://{tmp_path}/link/x"
    assert LocalStore("/").uri == "file://"
