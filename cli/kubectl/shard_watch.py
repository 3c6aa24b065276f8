"""A run's shard manifests, read beside the main thread and again and again, so that a slow store holds up no screen."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from cli.kubectl.api import Object
from cli.kubectl.on_store import explained
from cli.kubectl.runs import output_uri
from cli.output import Output, list_manifests, open_output, read_shards
from contract.errors import InferenceRunError
from contract.layout import RUN_KEY
from contract.manifest import ShardManifest
from contract.store.protocol import ETag


class ShardWatch:
    """Manifests of a run, as new as the store gives them. Reads only what has changed, by ETag."""

    def __init__(self, run: Object) -> None:
        """Nothing is read before `start`. What is wrong with the run's output becomes `problem`."""
        self._run = run
        self._output: Output | None = None
        self._etags: dict[int, ETag] = {}
        self._known: dict[int, ShardManifest] = {}
        self._has_read = threading.Event()
        self.manifests: Mapping[int, ShardManifest] | None = None
        """By shard; None = not read yet, or not to be had."""
        self.problem = ""
        """Why the store could not be read; empty when it could, or has not answered yet."""

    def start(self, *, every_s: float | None) -> None:
        """Read once, or for ever every so many seconds, in a thread that ends with the process."""

        def work() -> None:
            while True:
                self._read()
                self._has_read.set()
                if every_s is None:
                    return
                threading.Event().wait(every_s)

        threading.Thread(target=work, name="store", daemon=True).start()

    def wait(self, patience_s: float) -> bool:
        """Wait for the first answer; False when there is none within `patience_s`."""
        if self._has_read.wait(patience_s):
            return True
        self.problem = f"the store has not answered within {patience_s:g} s"
        return False

    def _read(self) -> None:
        try:
            uri = output_uri(self._run)
            with explained(self._run):
                if self._output is None or self._output.committer.read(RUN_KEY).etag != self._output.record_etag:
                    self._output = open_output(uri)  # at first, and when a new generation may have begun
                    self._etags, self._known = {}, {}
                listed = list_manifests(self._output)
                changed = [shard for shard, item in listed.items() if self._etags.get(shard) != item.etag]
                for shard, found in read_shards(self._output, changed).stored.items():
                    self._known[shard], self._etags[shard] = found.manifest, found.etag
        except InferenceRunError as error:
            self.manifests, self.problem = None, str(error)
            self._output = None
        else:
            self.manifests, self.problem = dict(self._known), ""
