"""An object store in a directory: the file names are the keys.

One host only: conditional puts compare under `flock` on the parent directory, which other hosts of a network file
system do not see. No lock file is ever made, so none can be unlinked under a waiter (two holders would then lock two
inodes and both believe they are alone).

A put writes a temporary file in the target's directory and links or renames it into place, so a reader sees the old
object or the new one, never a part. Temporary files are no objects: no listing shows them. One left behind by a killed
process is removed by the next listing that meets it, once it is an hour old.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from contract.store.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    UnsuitableStore,
)
from contract.store.protocol import Body, ETag, Listed, Stored, checked_range, view_of

TEMPORARY_PREFIX = ".inferencerun-tmp-"
"""Unmistakably ours: listings remove old ones, also in directories of the user's input."""
STALE_AFTER_S = 3600.0
"""Far above the longest put of one object."""

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
_PERMANENT = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
)


class LocalStore:
    """A directory on this host. It need not exist: the first put makes it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(path)  # noqa: PTH100  (resolve() would follow links, and the URI must be as given)

    @property
    def uri(self) -> str:
        """Root URI."""
        return f"file://{self._root.rstrip('/')}"

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """See ObjectStore."""
        checked_range(start, end)
        path = self._path(key)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                file.seek(start)
                body = file.read() if end is None else file.read(max(0, min(end, status.st_size) - start))
        except OSError as error:
            if error.errno in _ABSENT:
                raise NotFound(key, f"no such object in {self.uri}") from error
            raise _normalised(error, key, Unavailable) from error
        return Stored(body, _etag(status))

    def put_overwrite(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        path = self._path(key)
        with _io(key, OutcomeUnknown), _temporary(path, body) as temporary:
            with _locked(path.parent):
                etag = _replace(key, temporary, path, _status(path))
            _sync(path.parent)
            return etag

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        path = self._path(key)
        with _io(key, OutcomeUnknown), _temporary(path, body) as temporary:
            etag = _etag(temporary.stat())
            try:
                os.link(temporary, path)
            except FileExistsError as error:
                raise AlreadyExists(key, f"the object exists in {self.uri}") from error
            _sync(path.parent)
            return etag

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        path = self._path(key)
        with _io(key, OutcomeUnknown):
            if _status(path) is None:  # before the temporary file, which would make the directory of a lost object anew
                raise NotFound(key, f"no such object in {self.uri}")
        with _io(key, OutcomeUnknown), _temporary(path, body) as temporary:
            with _locked(path.parent):
                current = _status(path)
                if current is None:
                    raise NotFound(key, f"no such object in {self.uri}")
                if _etag(current) != etag:
                    raise PreconditionFailed(key, f"the ETag is {_etag(current)}, not {etag}")
                new = _replace(key, temporary, path, current)
            # Outside the lock, so that writers of one directory share a flush of the journal. Nobody is told of
            # success before this returns, and whoever builds on the new object flushes the same directory after us.
            _sync(path.parent)
            return new

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """See ObjectStore."""
        directory = prefix.rpartition("/")[0]
        if directory:
            self._path(directory)
        stale_before = time.time() - STALE_AFTER_S  # noqa: TID251  (an edge: the clock the files are stamped with)
        for key, status in self._walk(directory, prefix, stale_before, is_deep=is_deep):
            modified_at = datetime.fromtimestamp(status.st_mtime_ns / 1e9, UTC)
            yield Listed(key, status.st_size, _etag(status), modified_at)

    def delete(self, key: str) -> None:
        """See ObjectStore. Directories stay: an empty one is no object, and removing it would race with a put."""
        path = self._path(key)
        try:
            with _locked(
                path.parent
            ):  # a put_update must not bring back what is deleted between its compare and rename
                path.unlink()
            _sync(path.parent)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise _normalised(error, key, Unavailable) from error

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if "\0" in key or any(part in {"", ".", ".."} or part.startswith(TEMPORARY_PREFIX) for part in parts):
            raise ValueError(f"{key!r} is no key of a directory store: names joined by '/', without '.' or '..'")
        return Path(self._root, *parts)

    def _walk(
        self, directory: str, prefix: str, stale_before: float, *, is_deep: bool
    ) -> Iterator[tuple[str, os.stat_result]]:
        """Files in `directory`, and below it if `is_deep`, whose key starts with `prefix`, in the order of keys as bytes."""
        try:
            with os.scandir(Path(self._root, directory)) as scanned:
                # 'a-b' < 'a/b' < 'a0': a directory sorts where its children do.
                entries = sorted((entry.name + "/" if entry.is_dir() else entry.name, entry) for entry in scanned)
        except OSError as error:
            if error.errno in _ABSENT:
                return
            raise _normalised(error, directory, Unavailable) from error
        for name, entry in entries:
            key = f"{directory}/{name}" if directory else name
            if entry.name.startswith(TEMPORARY_PREFIX):
                _remove_stale(entry, stale_before)
            elif name.endswith("/"):
                if is_deep and (key.startswith(prefix) or prefix.startswith(key)):
                    yield from self._walk(key[:-1], prefix, stale_before, is_deep=True)
            elif key.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):  # deleted since the scan: not listed
                    yield key, entry.stat()


def _etag(status: os.stat_result) -> ETag:
    """Changes with every put (`_replace` sees to it) and is known from a listing, without a read."""
    return ETag(f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}")


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _replace(key: str, temporary: Path, path: Path, current: os.stat_result | None) -> ETag:
    """Rename over `path`, under its lock, with a modification time above that of the object before.

    Inode numbers are used again at once and the kernel stamps files only every few milliseconds, so without this a put
    of equal size could repeat the ETag of the last but one, and a stale writer would pass the comparison.
    """
    if current is not None and temporary.stat().st_mtime_ns <= current.st_mtime_ns:
        os.utime(temporary, ns=(current.st_mtime_ns + 1, current.st_mtime_ns + 1))
        if temporary.stat().st_mtime_ns <= current.st_mtime_ns:
            raise UnsuitableStore(
                key, f"{path.parent} keeps no nanoseconds in file times; use another file system or s3://"
            )
    status = temporary.stat()
    temporary.rename(path)
    return _etag(status)


@contextlib.contextmanager
def _io(key: str, otherwise: type[StoreError]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _normalised(error, key, otherwise) from error


def _normalised(error: OSError, key: str, otherwise: type[StoreError]) -> StoreError:
    """What another attempt cannot mend is a refusal; the rest (full disk, I/O error) may pass."""
    if error.errno in _PERMANENT:
        return AccessDenied(key, f"{error}; take another path, or give this user the right to it")
    return otherwise(key, str(error))


@contextlib.contextmanager
def _temporary(path: Path, body: Body) -> Iterator[Path]:
    """A flushed file with `body` beside `path`, gone afterwards unless it was renamed."""
    temporary = path.with_name(TEMPORARY_PREFIX + secrets.token_hex(8))
    try:
        with _opened(temporary) as descriptor, view_of(body) as view:
            written = 0
            while written < len(view):
                written += os.write(descriptor, view[written:])
            os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(temporary: Path) -> Iterator[int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o666)
    except FileNotFoundError:
        _make_directories(temporary.parent)
        descriptor = os.open(temporary, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make_directories(directory: Path) -> None:
    """Make what is missing of the path, each flushed in its parent, so that a crash cannot lose the whole branch."""
    if directory.is_dir():
        return
    _make_directories(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync(directory.parent)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Alone in `directory`, among threads and processes of this host. Held for a comparison and a rename."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(entry: os.DirEntry[str], stale_before: float) -> None:
    # Another listing may be faster, and a reader without the right to write leaves it to one that has it.
    with contextlib.suppress(OSError):
        if entry.stat().st_mtime < stale_before:
            Path(entry).unlink()
