"""Model files as a local directory, wherever they are.

A store prefix is downloaded once per node into a cache directory that is named by the ETags of its files: ranged
parallel gets (one connection to S3 gives about 90 MB/s), a temporary name, then an atomic rename, so a file under its
final name is whole. A lock makes the workers of a node wait for one download instead of making eight; the kernel drops
it with its holder. Many nodes that start together are often told to slow down (503): each get is patient, because a load
that fails begins again from nothing, and a worker whose loads fail ends at the expense of a shard.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from contract.errors import ModelError
from contract.names import ENV_CACHE_DIR
from contract.store.commit import Patience, patiently
from contract.store.errors import Unavailable
from contract.store.open import normalised_uri, open_store
from contract.store.protocol import Listed, ObjectStore

RANGE_BYTES = 16 << 20
"""Per get. 16 MiB amortises the round trip; with 8 at once 128 MiB are in memory."""
NUM_CONNECTIONS = 8

WANTED_SUFFIXES = (".json", ".txt", ".safetensors")
"""Everything a model of the Hugging Face layout needs, and nothing pickled."""


def local_directory(source: str, environment: Mapping[str, str]) -> Path:
    """The directory that holds the files of `source`: itself when it is local, else a cached copy.

    Raises:
        SpecError: a URI of no known kind of store.
        ModelError: nothing there, or the cache cannot be written; the message says what to do.
        StoreError: the store refuses, or does not answer for minutes.
    """
    uri = normalised_uri(source)
    if not uri.startswith("file://"):
        return cached_copy(open_store(uri), cache_directory(environment))
    directory = Path(uri.removeprefix("file://"))
    if not directory.is_dir():
        raise ModelError(f"model.source: {source} is no directory on this machine; mount it or name a store prefix")
    return directory


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Where downloads are kept: $INFERENCERUN_CACHE_DIR, else under $XDG_CACHE_HOME or ~/.cache."""
    if chosen := environment.get(ENV_CACHE_DIR):
        return Path(chosen)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inferencerun"


def cached_copy(store: ObjectStore, cache: Path, *, patience: Callable[[], Patience] = Patience) -> Path:
    """A local directory with the model files of a store prefix; downloads what is not there yet.

    `patience` is asked once per call of the store. Raises as `local_directory` does.
    """
    found = patiently(patience(), lambda: list(store.list(is_deep=False)))
    listed = [item for item in found if item.key.endswith(WANTED_SUFFIXES)]
    if not listed:
        raise ModelError(f"model.source: no model file under {store.uri}/; copy config.json and *.safetensors there")
    identity = "\n".join([store.uri, *(f"{item.key} {item.etag}" for item in listed)])
    directory = cache / hashlib.sha256(identity.encode()).hexdigest()[:32]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / ".lock"):
            missing = [item for item in listed if not (directory / item.key).exists()]
            for item in missing:
                _download(store, item, directory, patience)
    except OSError as error:
        raise ModelError(f"{directory}: cannot keep the model there ({error}); set {ENV_CACHE_DIR}") from error
    return directory


def _download(store: ObjectStore, item: Listed, directory: Path, patience: Callable[[], Patience]) -> None:
    """One object to its final name, or nothing."""

    def fetch(start: int) -> None:
        end = min(start + RANGE_BYTES, item.size)
        part = patiently(patience(), lambda: store.get(item.key, start=start, end=end))
        if part.etag != item.etag:
            raise Unavailable(item.key, f"changed while it was downloaded from {store.uri}; start again")
        os.pwrite(file.fileno(), part.body, start)

    # One name per file: what a killed holder of the lock left behind is overwritten, not piled up.
    part_path = directory / f".part-{item.key}"
    with part_path.open("wb") as file:
        with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="weights") as pool:
            for _ in pool.map(fetch, range(0, item.size, RANGE_BYTES)):
                pass
        os.fsync(file.fileno())
    part_path.replace(directory / item.key)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An exclusive lock. The file stays: unlinking it would let two holders lock different files of one name."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
