"""Builders for tests: each states only what differs from an ordinary run of four shards and two workers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from contract.flight import Flight
from contract.layout import build_data_key
from contract.manifest import Attempt, Checkpoint, Failure, Owner, Quarantined, ShardManifest, ShardStatus
from contract.names import FailureClass, QuarantineClass
from contract.plan import InputFormat, InputObject, Plan, cut
from contract.transitions import claimed, committed, first_claim, released
from controller.api import InferenceRun, parse_run
from controller.observed import Evidence, Observed, WorkerState, WorkerView

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RECORDS = 100
"""Records of each shard, where they are known."""


def later(seconds: float) -> datetime:
    """An instant after NOW."""
    return NOW + timedelta(seconds=seconds)


def resource(changes: Mapping[str, Any] | None = None, *, name: str = "run") -> dict[str, Any]:
    """A minimal valid resource, with `changes` merged into its spec."""
    found: dict[str, Any] = {
        "apiVersion": "inferencerun.dev/v1alpha1",
        "kind": "InferenceRun",
        "metadata": {"name": name},
        "spec": {
            "input": {"uris": ["in.fasta"]},
            "output": {"uri": "out"},
            "model": {"name": "kmer"},
            "workers": {"count": 2},
        },
    }
    _merge(found["spec"], changes or {})
    return found


def run(changes: Mapping[str, Any] | None = None, *, name: str = "run", generation: int = 1) -> InferenceRun:
    """The run of `resource(changes)`."""
    return replace(parse_run(resource(changes, name=name)), resource_generation=generation)


def plan(num_shards: int = 4) -> Plan:
    """A plan of shards of 100 bytes."""
    item = InputObject(uri="s3://in/a.fasta", size=100 * num_shards, etag="e")
    return cut([item], generation=1, fmt=InputFormat.FASTA, shard_bytes=100)


def held(
    shard: int = 0,
    *,
    uid: str = "uid-0",
    node: str = "node-a",
    pod: str = "run-0-0",
    done: int = 0,
    at: datetime = NOW,
) -> ShardManifest:
    """A shard held at epoch 1; its first `done` records are committed."""
    manifest = first_claim(
        plan(shard + 1).shards[shard],
        generation=1,
        owner=Owner(pod=pod, uid=uid, node=node),
        commit_id="claim",
        now=at,
    )
    return with_checkpoint(manifest, 0, done, at=at) if done else manifest


def with_checkpoint(manifest: ShardManifest, first: int, following: int, *, at: datetime = NOW) -> ShardManifest:
    """The manifest with the ordinals [first, following) committed at its epoch."""
    number = len(manifest.checkpoints)
    checkpoint = Checkpoint(
        key=build_data_key(1, manifest.shard, manifest.epoch, number),
        number=number,
        epoch=manifest.epoch,
        first=first,
        next=following,
        records=following - first,
        bytes=1000,
        sha256="0" * 64,
        created_at=at,
        seconds=10.0,
    )
    return committed(manifest, commit_id=f"commit-{number}", checkpoint=checkpoint, bytes_done=following)


def complete(shard: int = 0) -> ShardManifest:
    """A shard whose records are all committed."""
    return committed(held(shard, done=RECORDS), commit_id="complete", records=RECORDS)


def pending(manifest: ShardManifest | None = None, *, not_before: datetime | None = None) -> ShardManifest:
    """A shard that its owner has given back, claimable from `not_before`."""
    current = manifest or held()
    return released(current, attempt=attempt(current), commit_id="release", not_before=not_before)


def failed(shard: int = 0) -> ShardManifest:
    """A shard whose budget is spent."""
    current = held(shard)
    failure = Failure(failure_class=FailureClass.TRANSIENT, detail="exit 1; read the log")
    return released(current, attempt=attempt(current), commit_id="fail", failure=failure)


def taken(
    manifest: ShardManifest, *, uid: str, node: str = "node-a", pod: str = "run-0-1", at: datetime = NOW
) -> ShardManifest:
    """A pending shard, claimed."""
    return claimed(manifest, owner=Owner(pod=pod, uid=uid, node=node), commit_id=f"claim-{uid}", now=at)


def attempt(manifest: ShardManifest, failure_class: FailureClass = FailureClass.SPOT_EVICTION) -> Attempt:
    """What became of the manifest's owner."""
    assert manifest.owner is not None
    return Attempt(
        pod=manifest.owner.pod,
        uid=manifest.owner.uid,
        node=manifest.owner.node,
        epoch=manifest.epoch,
        failure_class=failure_class,
        evidence="drained",
        counted=failure_class is not FailureClass.SPOT_EVICTION,
        ended_at=NOW,
        held_seconds=20.0,
    )


def in_quarantine(ordinal: int) -> Quarantined:
    """A record in quarantine."""
    return Quarantined(
        ordinal=ordinal, offset=ordinal, id=str(ordinal), quarantine_class=QuarantineClass.NON_FINITE, detail="NaN"
    )


def flight(
    first: int | None = None,
    following: int | None = None,
    *,
    shard: int | None = 0,
    epoch: int = 1,
    exit_code: int | None = None,
    has_committed: bool = False,
    detail: str = "",
) -> Flight:
    """The last words of a worker, with [first, following) in flight."""
    return Flight(
        shard=shard,
        epoch=epoch if shard is not None else None,
        first=first,
        next=following,
        first_offset=None if first is None else first * 10,
        first_id="" if first is None else f"record-{first}",
        has_claimed=shard is not None,
        has_committed=has_committed,
        exit_code=exit_code,
        detail=detail,
    )


def worker(
    slot: int = 0,
    *,
    uid: str | None = None,
    attempt: int = 0,
    node: str = "node-a",
    state: WorkerState = WorkerState.RUNNING,
    evidence: Evidence | None = None,
) -> WorkerView:
    """A running worker; ended when `evidence` is given."""
    return WorkerView(
        name=f"run-{slot}-{attempt}",
        uid=uid or f"uid-{slot}",
        slot=slot,
        attempt=attempt,
        node=node,
        state=state if evidence is None else WorkerState.ENDED,
        started_at=NOW,
        evidence=evidence,
    )


def observed(
    *manifests: ShardManifest,
    workers: tuple[WorkerView, ...] = (),
    is_complete: bool = True,
    is_finalized: bool = False,
) -> Observed:
    """A look at these manifests and workers."""
    assert all(manifest.status in ShardStatus for manifest in manifests)
    return Observed(
        manifests={manifest.shard: manifest for manifest in manifests},
        workers=workers,
        is_complete=is_complete,
        is_finalized=is_finalized,
    )


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = deepcopy(value)
