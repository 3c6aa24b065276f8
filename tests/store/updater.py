"""A process that changes shard manifests, for the races: `python -m tests.store.updater URI FIRST_SHARD NUM_UPDATES`.

It says `ready`, waits for a line on its standard input, so that all start together, and then makes its updates by
read, change and conditional put. Every update is one version more: a lost one shows in the last version.
"""

from __future__ import annotations

import os
import random
import sys
import time

from contract.manifest import ShardManifest, from_json, invariants, to_json
from contract.store.commit import Committer
from contract.store.errors import Superseded
from contract.store.open import open_store
from contract.store.protocol import Stored
from contract.transitions import requeued


def manifest_key(shard: int) -> str:
    """Key of a shard's manifest."""
    return f"g0001/shards/{shard:05d}.json"


def main() -> None:
    """See the module."""
    uri, shard, num_updates = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    committer, key = Committer(open_store(uri)), manifest_key(shard)
    current = committer.read(key)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for number in range(num_updates):
        current = update(committer, key, current, f"{os.getpid()}-{number}")


def update(committer: Committer, key: str, current: Stored, commit_id: str) -> Stored:
    """One more version on top of whatever is there, from `current` as last seen."""
    wait_s = 0.02
    while True:
        manifest = from_json(current.body, where=key)
        new = changed(manifest, commit_id)
        problem = invariants(new, manifest)
        if problem:
            raise AssertionError(problem)
        body = to_json(new)
        try:
            committed = committer.update_document(key, body, current.etag, commit_id=commit_id)
        except Superseded:
            time.sleep(random.uniform(0, wait_s))  # else N in step make N * N / 2 puts
            wait_s = min(1.0, 2 * wait_s)
            current = committer.read(key)
        else:
            return committed.superseded_by or Stored(body, committed.etag)


def changed(manifest: ShardManifest, commit_id: str) -> ShardManifest:
    """The next version: a change that may be made any number of times and leaves the manifest small."""
    return requeued(manifest, commit_id=commit_id)


if __name__ == "__main__":
    main()
