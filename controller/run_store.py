"""What the controller reads and writes under the output URI: run.json, the plan, manifests by ETag, the index.

Holds no policy: `open_run` compares identities, `release` applies what the planner decided, `finalize` writes what the
manifests say. Dying at any line is harmless: each put is conditional, its bytes are a function of what was read, and the
next call finds it done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from contract import index, layout, manifest, plan, run_record
from contract.errors import Corrupt, IncompatibleRun
from contract.manifest import ShardManifest
from contract.plan import InputObject, Plan
from contract.run_record import RunRecord
from contract.store.commit import Committer
from contract.store.errors import NotFound, Superseded
from contract.store.inputs import comparable
from contract.store.probe import probe
from contract.store.protocol import ETag, Listed
from controller.actions import ReleaseShard
from controller.api import InferenceRun, model_identity

READERS = 8
"""Manifests fetched, or changed, at once: no more than an S3 client keeps connections."""

MAX_RACES = 10
"""Other controllers that may change run.json between our read and our put."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRun:
    """A run that may be worked on: its record and its plan."""

    record: RunRecord
    plan: Plan


def wanted_record(
    run: InferenceRun, objects: tuple[InputObject, ...], *, uid: str, opened_for: str | None = None
) -> RunRecord:
    """The record of a first generation with the identity that `run` asks for. Pure.

    Args:
        run: the spec.
        objects: the input as listed.
        uid: of the run, should it be new.
        opened_for: the request for a restart that asks for a generation, should it be new; None = there is none.
    """
    spec = run.spec
    return RunRecord(
        name=run.name,
        uid=uid,
        generation=1,
        input=run_record.input_identity(
            objects, fmt=spec.input.format, id_field=spec.input.id_field, value_field=spec.input.value_field
        ),
        model=model_identity(spec),
        shard_bytes=spec.input.shard_bytes,
        version=1,
        commit_id="",
        history=(),
        input_uris=comparable(spec.input.uris),
        opened_for=opened_for,
    )


class RunStore:
    """One output URI, as the controller sees it."""

    def __init__(self, committer: Committer, *, new_id: Callable[[], str]) -> None:
        self._committer = committer
        self._new_id = new_id
        self._seen: dict[str, tuple[ETag, ShardManifest]] = {}

    @property
    def uri(self) -> str:
        """The output URI."""
        return self._committer.store.uri

    def probe(self) -> None:
        """Raise UnsuitableStore unless conditional puts work here; ask before the first use of an output."""
        probe(self._committer.store, nonce=self._new_id())

    def read_record(self) -> RunRecord | None:
        """run.json, None when there is no run yet. Raises Corrupt or NewerFormat."""
        found = self._read_record()
        return found[0] if found else None

    def resumed(self, run: InferenceRun) -> OpenedRun | None:
        """The run that is there, with the plan it was begun with; None when only a listing can tell whether it is `run`.

        What has come or gone since under a pattern of the input changes nothing: the plan says what the input is. Workers
        see by its ETag when an object in it has changed.

        Raises:
            IncompatibleRun: another model, or the input read otherwise; or an archived run. Nothing was touched.
        """
        record = self.read_record()
        if record is None or record.input_uris != comparable(run.spec.input.uris):
            return None
        shards = self._read_plan(record.generation)
        if shards is None:
            return None
        self._refuse_archived(record)
        self._refuse_other(wanted_record(run, shards.objects, uid=record.uid), record)
        return OpenedRun(record=record, plan=shards)

    def open_run(self, wanted: RunRecord, objects: tuple[InputObject, ...], *, restarts: bool) -> OpenedRun:
        """Create the run, or continue the one that is there; then make sure of its plan.

        Args:
            wanted: record of a first generation with the identity the spec asks for.
            objects: the input as listed.
            restarts: open the next generation, whatever the present one holds.

        Raises:
            IncompatibleRun: another input or model, or an archived run; nothing was touched.
        """
        record = self._open_record(wanted, restarts=restarts)
        shards = plan.cut(
            objects, generation=record.generation, fmt=record.input.format, shard_bytes=record.shard_bytes
        )
        key = layout.build_plan_key(record.generation)
        try:
            self._committer.create_immutable(key, plan.to_json(shards))
        except Superseded as error:
            raise Corrupt(
                f"{self.uri}/{key}: the plan there is not the one this input gives; start a new generation with --restart"
            ) from error
        return OpenedRun(record=record, plan=shards)

    def _open_record(self, wanted: RunRecord, *, restarts: bool) -> RunRecord:
        for _ in range(MAX_RACES):
            found = self._read_record()
            commit_id = self._new_id()
            try:
                if found is None:
                    record = replace(wanted, generation=1, version=1, commit_id=commit_id, history=(commit_id,))
                    self._committer.create_document(layout.RUN_KEY, run_record.to_json(record), commit_id=commit_id)
                    return record
                current, etag = found
                self._refuse_archived(current)
                if restarts:
                    changed = replace(wanted, uid=current.uid, generation=current.generation + 1)
                else:
                    self._refuse_other(wanted, current)
                    # An older version did not keep what the spec named; or the spec names the same objects otherwise now.
                    changed = replace(current, input_uris=wanted.input_uris)
                if changed == current:
                    return current
                record = replace(
                    changed,
                    version=current.version + 1,
                    commit_id=commit_id,
                    history=(*current.history, commit_id)[-manifest.HISTORY_LENGTH :],
                )
                self._committer.update_document(layout.RUN_KEY, run_record.to_json(record), etag, commit_id=commit_id)
            except Superseded:
                continue
            return record
        raise Corrupt(f"{self.uri}/{layout.RUN_KEY}: changed by somebody else {MAX_RACES} times while opening it")

    def _refuse_archived(self, current: RunRecord) -> None:
        if current.is_archived:
            raise IncompatibleRun(f"{self.uri}: this run is archived and read-only; choose another output.uri")

    def _refuse_other(self, wanted: RunRecord, current: RunRecord) -> None:
        found = run_record.differences(wanted, current)
        if found:
            raise IncompatibleRun(
                f"{self.uri} holds run {current.name!r} of another input or model; nothing was touched. "
                + "; ".join(found)
                + ". Choose another output.uri, or open a new generation with --restart (the old one stays)"
            )

    def _read_record(self) -> tuple[RunRecord, ETag] | None:
        try:
            stored = self._committer.read(layout.RUN_KEY)
        except NotFound:
            return None
        return run_record.from_json(stored.body, where=f"{self.uri}/{layout.RUN_KEY}"), stored.etag

    def _read_plan(self, generation: int) -> Plan | None:
        key = layout.build_plan_key(generation)
        try:
            return plan.from_json(self._committer.read(key).body, where=f"{self.uri}/{key}")
        except NotFound:
            return None

    def read_manifests(self, generation: int) -> dict[int, ShardManifest]:
        """All manifests by shard: one listing, and a read of those whose ETag moved since the last call.

        Those of another generation, read before, are let go of.
        """
        listed = [
            entry
            for entry in self._committer.list(layout.build_shards_prefix(generation))
            if layout.parse_shard_key(entry.key) is not None
        ]
        changed = [entry for entry in listed if self._seen.get(entry.key, (None,))[0] != entry.etag]
        if len(changed) > 1:
            with ThreadPoolExecutor(READERS) as pool:
                read = list(pool.map(self._read_manifest, changed))
        else:
            read = [self._read_manifest(entry) for entry in changed]
        unchanged = {entry.key: self._seen[entry.key] for entry in listed if entry.key in self._seen}
        self._seen = {**unchanged, **dict(read)}
        return {
            parsed[1]: self._seen[entry.key][1]
            for entry in listed
            if (parsed := layout.parse_shard_key(entry.key)) is not None
        }

    def _read_manifest(self, entry: Listed) -> tuple[str, tuple[ETag, ShardManifest]]:
        stored = self._committer.read(entry.key)
        found = manifest.from_json(stored.body, where=f"{self.uri}/{entry.key}")
        return entry.key, (stored.etag, found)

    def release_all(self, actions: Sequence[ReleaseShard], generation: int) -> bool:
        """Give back shards of dead workers, some at once; False when a manifest has moved on since it was observed.

        Each is tried, whatever becomes of the others. One after another, the shards of a cluster that lost its nodes would
        keep their replacements waiting for a round trip each.
        """
        if len(actions) == 1:
            return self.release(actions[0], generation)
        with ThreadPoolExecutor(READERS) as pool:
            return all([*pool.map(lambda action: self.release(action, generation), actions)])

    def release(self, action: ReleaseShard, generation: int) -> bool:
        """Give back the shard of a dead worker; False when its manifest has moved on since it was observed."""
        key = layout.build_shard_key(generation, action.shard)
        etag, current = self._seen[key]
        commit_id = self._new_id()
        proposed = action.applied(current, commit_id=commit_id)
        if proposed is None:
            return False
        problem = manifest.invariants(proposed, current)
        assert problem is None, f"{key}: {problem}"
        try:
            self._committer.update_document(key, manifest.to_json(proposed), etag, commit_id=commit_id)
        except Superseded:
            return False
        return True

    def keep_log(self, generation: int, *, pod: str, uid: str, content: bytes) -> None:
        """Keep the end of a failed worker's log; one that is there already stays."""
        with suppress(Superseded):
            self._committer.create_immutable(layout.build_log_key(generation, pod, uid), content)

    def finalize(self, generation: int, manifests: Mapping[int, ShardManifest]) -> None:
        """Write index.json, then _SUCCESS. Both are functions of final manifests: repeating it writes the same bytes."""
        content = index.to_json(index.build_index(manifests.values(), generation=generation))
        key = layout.build_index_key(generation)
        try:
            self._committer.create_immutable(key, content)
        except Superseded as error:
            raise Corrupt(
                f"{self.uri}/{key}: the index there does not match the manifests; remove it, then run again"
            ) from error
        self._committer.create_immutable(layout.build_success_key(generation), b"")

    def is_finalized(self, generation: int) -> bool:
        """Whether _SUCCESS is there."""
        key = layout.build_success_key(generation)
        return any(entry.key == key for entry in self._committer.list(key))

    def has_ended(self, generation: int) -> bool:
        """Whether nothing is left to do in it: it is finished, or every shard is final and some have failed."""
        if self.is_finalized(generation):
            return True
        shards = self._read_plan(generation)
        if shards is None:
            return False
        manifests = self.read_manifests(generation)
        return all(item.shard in manifests and manifests[item.shard].is_final for item in shards.shards)
