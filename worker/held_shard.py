"""A shard this worker holds: the one place that changes its manifest, always by conditional put.

The ETag of the last change is kept, so a commit is one small put and no get: a shard has one writer, and whoever else
changes its manifest has taken it away. A put that is superseded is looked at, never repeated blindly: another epoch or
owner means fenced; the same epoch and owner means that our change must be made again on top of the newer version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from contract import layout, manifest
from contract.errors import Fenced
from contract.manifest import ShardManifest
from contract.store.commit import Committer
from contract.store.errors import Superseded
from contract.store.protocol import ETag

Change = Callable[[ShardManifest, str], ShardManifest]
"""(current version, commit id) -> next version."""

MAX_REBASES = 10
"""A shard has one writer; more foreign changes under our own epoch than this cannot be explained."""


@dataclass(slots=True)
class HeldShard:
    """The current version of a held shard's manifest."""

    committer: Committer
    new_id: Callable[[], str]
    current: ShardManifest
    etag: ETag

    @property
    def key(self) -> str:
        """Key of the manifest."""
        return layout.build_shard_key(self.current.generation, self.current.shard)

    def commit(self, change: Change) -> ShardManifest:
        """Make `change` and return the new version; this put is the commit point.

        Raises:
            Fenced: another epoch or owner holds the shard. Stop at once. (If our change had landed before the takeover
                it counts; it is then in the history, and nothing is lost.)
            NotFound: the manifest was deleted. Stop; never re-create it.
            OutcomeUnknown: not settled within the budget; the data object stays.
        """
        for _ in range(MAX_REBASES):
            commit_id = self.new_id()
            proposed = change(self.current, commit_id)
            problem = manifest.invariants(proposed, self.current)
            assert problem is None, f"{self.key}: {problem}"
            try:
                outcome = self.committer.update_document(
                    self.key, manifest.to_json(proposed), self.etag, commit_id=commit_id
                )
            except Superseded as error:
                found = manifest.from_json(error.current.body, where=self.key)
                self._refuse_if_lost(found, was_committed=False)
                self.current, self.etag = found, error.current.etag
                continue
            if outcome.superseded_by is not None:
                found = manifest.from_json(outcome.superseded_by.body, where=self.key)
                self._refuse_if_lost(found, was_committed=True)
                self.current, self.etag = found, outcome.etag
                return found
            self.current, self.etag = proposed, outcome.etag
            return proposed
        raise Fenced(f"{self.key}: changed {MAX_REBASES} times under epoch {self.current.epoch} by somebody else")

    def _refuse_if_lost(self, found: ShardManifest, *, was_committed: bool) -> None:
        mine = self.current
        if found.epoch == mine.epoch and found.owner == mine.owner:
            return
        fate = "the last commit had landed before" if was_committed else "the last commit did not land"
        holder = found.owner.pod if found.owner else "nobody"
        raise Fenced(f"{self.key}: epoch {mine.epoch} is over, now epoch {found.epoch} held by {holder}; {fate}")
