"""Values with every field set, for round trips and as a start for `dataclasses.replace`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from contract.index import Index, build_index
from contract.layout import build_data_key
from contract.manifest import (
    Attempt,
    Checkpoint,
    Failure,
    Hints,
    Owner,
    Quarantined,
    Restarts,
    ShardManifest,
    ShardStatus,
    Strike,
)
from contract.names import FailureClass, QuarantineClass
from contract.plan import Compression, InputFormat, InputObject, Plan, Shard, cut
from contract.ranges import Range
from contract.run_record import ModelIdentity, RunRecord, input_identity
from contract.settings import CheckpointSettings, ModelSettings, WorkerSettings

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
SHARD = Shard(shard=7, object="s3://in/a.fasta", start=100, end=900, compression=Compression.NONE)
OWNER = Owner(pod="run-0-1", uid="uid-1", node="node-a")
OTHER_OWNER = Owner(pod="run-1-1", uid="uid-2", node="node-b")


def checkpoint(
    first: int, following: int, *, epoch: int = 1, number: int = 0, records: int | None = None
) -> Checkpoint:
    """A checkpoint of [first, following) in shard 7 of generation 1."""
    return Checkpoint(
        key=build_data_key(1, SHARD.shard, epoch, number),
        number=number,
        epoch=epoch,
        first=first,
        next=following,
        records=following - first if records is None else records,
        bytes=4096,
        sha256="ab" * 32,
        created_at=NOW,
        seconds=1.5,
        write_seconds=0.5,
        stall_seconds=0.25,
        next_offset=following * 100,
    )


def quarantined(ordinal: int, *, quarantine_class: QuarantineClass = QuarantineClass.NON_FINITE) -> Quarantined:
    """A record in quarantine."""
    return Quarantined(
        ordinal=ordinal, offset=ordinal * 100, id=f"protéin {ordinal}", quarantine_class=quarantine_class, detail="NaN"
    )


def attempt(
    *, uid: str = OWNER.uid, epoch: int = 1, counted: bool = True, failure_class: FailureClass = FailureClass.TRANSIENT
) -> Attempt:
    """An ended attempt."""
    return Attempt(
        pod=OWNER.pod,
        uid=uid,
        node=OWNER.node,
        epoch=epoch,
        failure_class=failure_class,
        evidence="exit code 75",
        counted=counted,
        ended_at=NOW,
        held_seconds=12.25,
    )


def running(*, done: tuple[Range, ...] = (), records: int | None = None) -> ShardManifest:
    """A shard held by OWNER at epoch 1 with one checkpoint for each done range."""
    return ShardManifest(
        shard=SHARD.shard,
        generation=1,
        object=SHARD.object,
        start=SHARD.start,
        end=SHARD.end,
        status=ShardStatus.RUNNING,
        epoch=1,
        owner=OWNER,
        version=1 + len(done),
        commit_id=f"c{len(done)}",
        history=tuple(f"c{number}" for number in range(1 + len(done))),
        records=records,
        done=done,
        checkpoints=tuple(checkpoint(first, end, number=number) for number, (first, end) in enumerate(done)),
        claimed_at=NOW,
    )


def full_manifest() -> ShardManifest:
    """A failed shard in which no field has its default."""
    return ShardManifest(
        shard=SHARD.shard,
        generation=1,
        object=SHARD.object,
        start=SHARD.start,
        end=SHARD.end,
        status=ShardStatus.FAILED,
        epoch=3,
        owner=None,
        version=9,
        commit_id="c9",
        history=("c8", "c9"),
        records=30,
        done=((0, 4), (5, 10)),
        bytes_done=321,
        checkpoints=(checkpoint(0, 10, records=9),),
        quarantined=(quarantined(4),),
        strikes=(Strike(first=10, next=12, count=2),),
        attempts=(attempt(), attempt(uid="uid-2", epoch=2)),
        restarts=Restarts(total=5, counted=3, by_class=(("SpotEviction", 2), ("Transient", 3)), streak=2),
        hints=Hints(token_budget=2048, memory_bytes=2**33),
        claimed_at=NOW,
        completed_by=OWNER,
        not_before=NOW + timedelta(seconds=2),
        failure=Failure(failure_class=FailureClass.TRANSIENT, detail="3 counted failures; see the worker's log"),
    )


def held_manifest() -> ShardManifest:
    """A running shard: the fields that a failed one cannot have."""
    return running(done=((0, 3),), records=9)


def plan() -> Plan:
    """Two objects, three shards, generation 1."""
    objects = (
        InputObject(uri="s3://in/b.jsonl.gz", size=700, etag='"e2"', compression=Compression.GZIP),
        InputObject(uri="s3://in/a.jsonl", size=900, etag='"e1"'),
    )
    return cut(objects, generation=1, fmt=InputFormat.JSONL, shard_bytes=500)


def run_record() -> RunRecord:
    """A run that has changed its record once."""
    return RunRecord(
        name="swissprot",
        uid="run-uid",
        generation=2,
        input=input_identity(plan().objects, fmt=InputFormat.JSONL, id_field="id", value_field="sequence"),
        model=ModelIdentity(
            name="esm2",
            source="random:1",
            parameters_json='{"size":"8M"}',
            precision="bf16",
            dtype="float16",
            kind="pooled",
            max_length=1022,
            on_too_long="truncate",
        ),
        shard_bytes=500,
        version=2,
        commit_id="r2",
        history=("r1", "r2"),
        is_archived=True,
        input_uris=("s3://in/",),
        opened_for="uid/3",
    )


def index() -> Index:
    """The index of one failed shard."""
    return build_index([full_manifest()], generation=1)


def worker_settings() -> WorkerSettings:
    """Settings in which little has its default."""
    return WorkerSettings(
        run="swissprot",
        run_uid="run-uid",
        output_uri="s3://out/run",
        generation=2,
        input_format=InputFormat.FASTA,
        model=ModelSettings(
            name="esm2", source="random:1", parameters={"size": "8M"}, precision="bf16", max_length=1022
        ),
        checkpoint=CheckpointSettings(
            every_records=10, every_seconds=30.0, every_bytes=1 << 26, emergency_seconds=60.0
        ),
        value_field=None,
        worker_index=3,
        num_workers=8,
    )
