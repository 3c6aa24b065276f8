"""`inferencerun` in a process that is killed at one of its own writes.

python -m tests.cli.killed_coordinator KEY-ENDING before|after ARGUMENTS
"""

from __future__ import annotations

import os
import signal
import sys

import cli.run
from cli.main import main
from contract.store.local import LocalStore
from contract.store.open import open_store
from contract.store.protocol import Body, ETag


class KilledAtWrite(LocalStore):
    """SIGKILL, so that nothing is cleaned up, just before or just after the first write of a key with this ending."""

    ending = ""
    is_after = False

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        if key.endswith(self.ending) and not self.is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        etag = super().put_create(key, body)
        if key.endswith(self.ending):
            os.kill(os.getpid(), signal.SIGKILL)
        return etag

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        if key.endswith(self.ending) and not self.is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        new = super().put_update(key, body, etag)
        if key.endswith(self.ending):
            os.kill(os.getpid(), signal.SIGKILL)
        return new


def _open(uri: str) -> KilledAtWrite:
    return KilledAtWrite(open_store(uri).uri.removeprefix("file://"))


if __name__ == "__main__":
    KilledAtWrite.ending, KilledAtWrite.is_after = sys.argv[1], sys.argv[2] == "after"
    cli.run.open_store = _open
    main(sys.argv[3:])
