"""An output URI, opened: the run record, the plan and the shard manifests of one generation.

This is the edge of the commands that read results: the clock, fresh ids and the store enter here. What a command says is
derived from the manifests alone; nothing is cached between two calls.
"""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from cli import snapshots
from cli.snapshots import Snapshot
from contract import manifest as manifest_format
from contract import plan as plan_format
from contract import run_record as run_format
from contract.errors import Corrupt, SpecError
from contract.layout import (
    RUN_KEY,
    build_index_key,
    build_plan_key,
    build_shard_key,
    build_shards_prefix,
    build_snapshots_prefix,
    build_success_key,
    parse_shard_key,
)
from contract.manifest import ShardManifest
from contract.plan import Plan
from contract.run_record import RunRecord
from contract.store.commit import Committer
from contract.store.errors import NotFound
from contract.store.open import open_store
from contract.store.protocol import ETag, Listed, ObjectStore

NUM_STORE_THREADS = 16
"""Calls in flight at once: at 30 ms a call, 10,000 manifests take 20 s instead of 5 minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One generation of a run's output."""

    uri: str
    store: ObjectStore
    committer: Committer
    record: RunRecord
    record_etag: ETag
    generation: int
    stored_plan: Plan | None
    """None: the run stopped before it was planned."""

    @property
    def plan(self) -> Plan:
        """The plan; raises SpecError when there is none yet."""
        if self.stored_plan is None:
            raise SpecError(
                f"{self.uri}: generation {self.generation} has no plan yet; start the run again and it will be planned"
            )
        return self.stored_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredManifest:
    """A manifest as read, with the ETag that a change of it must name."""

    manifest: ShardManifest
    etag: ETag


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableManifest:
    """A manifest that does not decode. Its shard can be neither judged nor claimed until it is repaired."""

    shard: int
    key: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """All manifests of a generation; a shard in neither was never claimed."""

    stored: dict[int, StoredManifest]
    unreadable: tuple[UnreadableManifest, ...]

    @property
    def readable(self) -> tuple[ShardManifest, ...]:
        """Those that decode, by shard."""
        return tuple(self.stored[shard].manifest for shard in sorted(self.stored))


def open_output(uri: str, generation: int | None = None) -> Output:
    """The run stored under `uri`.

    Args:
        uri: `file:///...`, a path, `s3://bucket/prefix` or `gs://bucket/prefix`.
        generation: which one to read; None = the current one.

    Raises:
        SpecError: no run there, or no such generation.
        Corrupt: run.json or the plan does not decode.
    """
    store = open_store(uri)
    committer = Committer(store)
    record, etag = _read_record(committer)
    chosen = record.generation if generation is None else generation
    if not 1 <= chosen <= record.generation:
        raise SpecError(f"{store.uri}: generation {chosen} does not exist; the run has 1 to {record.generation}")
    key = build_plan_key(chosen)
    try:
        plan = plan_format.from_json(committer.read(key).body, where=key)
    except NotFound:
        plan = None
    return Output(
        uri=store.uri,
        store=store,
        committer=committer,
        record=record,
        record_etag=etag,
        generation=chosen,
        stored_plan=plan,
    )


def read_record(uri: str) -> RunRecord:
    """What run.json says under `uri`; raises as `open_output`."""
    return _read_record(Committer(open_store(uri)))[0]


def _read_record(committer: Committer) -> tuple[RunRecord, ETag]:
    try:
        stored = committer.read(RUN_KEY)
    except NotFound as error:
        raise SpecError(
            f"{committer.store.uri}: no run here ({RUN_KEY} is missing); give the run's output.uri"
        ) from error
    return run_format.from_json(stored.body, where=RUN_KEY), stored.etag


def list_manifests(output: Output) -> dict[int, Listed]:
    """The manifests' listing by shard: every ETag for one call in a thousand."""
    listed = (
        (parse_shard_key(item.key), item) for item in output.committer.list(build_shards_prefix(output.generation))
    )
    return {parsed[1]: item for parsed, item in listed if parsed is not None}


def read_manifests(output: Output) -> Manifests:
    """All manifests of the generation."""
    return read_shards(output, sorted(list_manifests(output)))


def read_shards(output: Output, shards: list[int]) -> Manifests:
    """The manifests of these shards. Raises NotFound when one is absent."""
    stored: dict[int, StoredManifest] = {}
    unreadable: list[UnreadableManifest] = []
    with ThreadPoolExecutor(NUM_STORE_THREADS) as threads:
        for shard, found in zip(shards, threads.map(lambda shard: read_manifest(output, shard), shards), strict=True):
            if isinstance(found, StoredManifest):
                stored[shard] = found
            else:
                unreadable.append(found)
    return Manifests(stored=stored, unreadable=tuple(unreadable))


def read_manifest(output: Output, shard: int) -> StoredManifest | UnreadableManifest:
    """One shard's manifest. Raises NotFound when it was never claimed, NewerFormat when this version is too old."""
    key = build_shard_key(output.generation, shard)
    found = output.committer.read(key)
    try:
        return StoredManifest(manifest=manifest_format.from_json(found.body, where=key), etag=found.etag)
    except Corrupt as error:
        return UnreadableManifest(shard=shard, key=key, message=str(error))


def read_snapshots(output: Output) -> tuple[Snapshot, ...]:
    """All snapshots of the generation, by name. Raises Corrupt."""
    listed = output.committer.list(build_snapshots_prefix(output.generation))
    return tuple(snapshots.from_json(output.committer.read(item.key).body, where=item.key) for item in listed)


def replace_manifest(output: Output, current: StoredManifest, new: ShardManifest) -> None:
    """Put `new` in the place of `current`.

    Raises:
        AssertionError: the change breaks an invariant (our own mistake).
        Superseded: somebody changed the manifest meanwhile; read again and decide again.
    """
    broken = manifest_format.invariants(new, current.manifest)
    if broken is not None:
        raise AssertionError(f"shard {new.shard}: {broken}")
    key = build_shard_key(output.generation, new.shard)
    body = manifest_format.to_json(new)
    output.committer.update_document(key, body, current.etag, commit_id=new.commit_id)


def is_finished(output: Output) -> bool:
    """Whether the generation is complete and its index written: readers may rely on it."""
    key = build_success_key(output.generation)
    return any(item.key == key for item in output.committer.list(key))


def withdraw_success(output: Output) -> None:
    """Remove _SUCCESS, then index.json: the generation is about to have open records again.

    _SUCCESS first, so that a reader never meets it beside an index that no longer holds. Call it before the manifests
    change and once more after: a coordinator that finalises at this very moment may write both from what it read before.
    """
    output.committer.delete(build_success_key(output.generation))
    output.committer.delete(build_index_key(output.generation))


def check_is_open(output: Output) -> None:
    """Raise SpecError when the run is archived, and so read-only, or the generation is not the current one."""
    if output.record.is_archived:
        raise SpecError(
            f"{output.uri}: the run is archived, so its results no longer change; start a new output instead"
        )
    if output.generation != output.record.generation:
        raise SpecError(f"{output.uri}: only the current generation, {output.record.generation}, can be changed")


def new_commit_id() -> str:
    """A fresh id for one change."""
    return f"cli-{uuid.uuid4().hex}"  # noqa: TID251  (the edge: ids enter here)


def current_time() -> datetime:
    """Now, aware, UTC."""
    return datetime.now(UTC)  # noqa: TID251  (the edge: the clock enters here)
