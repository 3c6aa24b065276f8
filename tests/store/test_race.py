"""The tests that a manifest under a file lock could not pass: many processes, one store, and no update is lost."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contract.manifest import from_json, to_json
from contract.plan import Compression, Shard
from contract.store.commit import Committer
from contract.store.errors import AlreadyExists
from contract.store.open import open_store
from contract.store.protocol import ObjectStore
from contract.transitions import reset
from tests.store.updater import manifest_key

NUM_UPDATES = 50
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "s3_uri", "gcs_uri"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh output on each kind of store that processes can share."""
    return f"file://{tmp_path}/run" if request.param == "local" else str(request.getfixturevalue(request.param))


@pytest.mark.parametrize("num_processes", [4, 32])
@pytest.mark.parametrize("is_shared", [False, True], ids=["different-shards", "same-shard"])
def test_no_update_is_lost(uri: str, num_processes: int, *, is_shared: bool) -> None:
    """Spawned processes make 50 updates each at the same time; all count, and every manifest is readable throughout."""
    store = open_store(uri)
    shards = [0 if is_shared else number for number in range(num_processes)]
    for shard in set(shards):
        store.put_create(manifest_key(shard), first_version(shard))

    with watched(store, sorted(set(shards))) as seen:
        failures = run_updaters(uri, shards)

    assert failures == []
    for shard in set(shards):
        final = from_json(store.get(manifest_key(shard)).body, where="final")
        assert final.version == 1 + shards.count(shard) * NUM_UPDATES
        assert final.epoch == final.version
        assert len(set(final.history)) == len(final.history) == min(64, final.version)
    assert len(seen) > num_processes  # the watcher did look meanwhile


def test_one_process_creates(uri: str) -> None:
    """Of many concurrent claims of an untouched shard exactly one wins, for each of many shards."""
    store = open_store(uri)
    barrier = threading.Barrier(8)

    def claim_all(racer: int) -> list[bool]:
        barrier.wait()
        return [claim(store, shard, racer) for shard in range(25)]

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim_all, range(8)))

    assert [sum(column) for column in zip(*won, strict=True)] == [1] * 25


def claim(store: ObjectStore, shard: int, racer: int) -> bool:
    """Whether this racer's creation was the one."""
    try:
        store.put_create(manifest_key(shard), b"racer %d" % racer)
    except AlreadyExists:
        return False
    return True


def first_version(shard: int) -> bytes:
    """A pending manifest."""
    cut = Shard(shard=shard, object="file:///in.fasta", start=0, end=10, compression=Compression.NONE)
    return to_json(reset(cut, generation=1, epoch=1, commit_id="first"))


def run_updaters(uri: str, shards: list[int]) -> list[str]:
    """Start a process for each entry, let them go together, wait; what went wrong."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.store.updater", uri, str(shard), str(NUM_UPDATES)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for shard in shards
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [process.communicate()[1] for process in processes if process.wait()]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def watched(store: ObjectStore, shards: list[int]) -> Iterator[list[int]]:
    """Read every manifest again and again: each must be whole, and no version may be below one seen before."""
    seen: list[int] = []
    problems: list[str] = []
    is_over = threading.Event()
    committer = Committer(store)

    def watch() -> None:
        versions = dict.fromkeys(shards, 0)
        while not is_over.wait(0.01):  # leave the processor to those who write
            for shard in shards:
                try:
                    version = from_json(committer.read(manifest_key(shard)).body, where="watched").version
                except Exception as error:  # noqa: BLE001  (anything at all is what the test looks for)
                    problems.append(repr(error))
                    return
                if version < versions[shard]:
                    problems.append(f"shard {shard} went from version {versions[shard]} to {version}")
                versions[shard] = version
                seen.append(version)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        is_over.set()
        watcher.join()
    assert problems == []
