"""Runs made up for the report: manifests changed by the real transitions, over a clock of their own."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from cli.output import Manifests, StoredManifest
from cli.report_content import ReportContent, build_content
from contract import layout, run_record, transitions
from contract.manifest import Attempt, Checkpoint, Failure, Owner, Quarantined, ShardManifest
from contract.names import FailureClass, QuarantineClass
from contract.plan import InputFormat, InputObject, Plan, cut
from contract.run_record import ModelIdentity, RunRecord
from contract.store.protocol import ETag
from controller.failure_policy import FREE

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
SHARD_BYTES = 64 * 1024 * 1024
HOSTILE = "<script>document.title='owned'</script>\"'&\x1b[31m\u202e"


def an_object(size: int) -> InputObject:
    """The only input object."""
    return InputObject(uri="s3://bucket/proteins.fasta", size=size, etag='"e"')


def a_record(objects: tuple[InputObject, ...], *, name: str = "swissprot-esm2") -> RunRecord:
    """run.json of an ESM-2 run."""
    return RunRecord(
        name=name,
        uid="5f0c1f0e-run",
        generation=1,
        input=run_record.input_identity(objects, fmt=InputFormat.FASTA, id_field="id", value_field="sequence"),
        model=ModelIdentity(
            name="esm2",
            source="s3://bucket/models/esm2_t33_650M_UR50D",
            parameters_json="{}",
            precision="bf16",
            dtype="float16",
            kind="pooled",
            max_length=1022,
            on_too_long="truncate",
        ),
        shard_bytes=SHARD_BYTES,
        version=1,
        commit_id="open",
        history=("open",),
    )


@dataclass(kw_only=True)
class Story:
    """A run that workers work off, each with its own clock, until its end or until `stop_at`."""

    num_shards: int
    num_workers: int
    seed: int = 1
    name: str = "swissprot-esm2"
    record_id: str = "sp|Q9XYZ1"
    evidence: str = "the pod was disrupted (PreemptionByScheduler)"
    checkpoints_per_shard: int = 6
    stop_at: datetime | None = None
    """Nothing happens from here on; None = to the end."""
    has_failed_shard: bool = False
    bad_ends: tuple[FailureClass, ...] = (
        FailureClass.SPOT_EVICTION,
        FailureClass.SPOT_EVICTION,
        FailureClass.NODE_LOST,
        FailureClass.TRANSIENT,
        FailureClass.OUT_OF_MEMORY,
        FailureClass.INTENDED,
    )
    manifests: dict[int, ShardManifest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        objects = (an_object(SHARD_BYTES * self.num_shards),)
        self.plan: Plan = cut(objects, generation=1, fmt=InputFormat.FASTA, shard_bytes=SHARD_BYTES)
        self.record = a_record(objects, name=self.name)
        self._random = random.Random(self.seed)
        self._clocks = [START + timedelta(seconds=20 * slot % 90) for slot in range(self.num_workers)]
        self._attempts = [0] * self.num_workers
        self._work()

    @property
    def now(self) -> datetime:
        """When it is looked at: its end, or the moment it was stopped at."""
        return self.stop_at or max(self._clocks)

    @property
    def stored(self) -> Manifests:
        """As read from a store."""
        return Manifests(
            stored={key: StoredManifest(manifest=item, etag=ETag("e")) for key, item in self.manifests.items()},
            unreadable=(),
        )

    @property
    def content(self) -> ReportContent:
        """The content of its report."""
        return build_content(
            output="s3://bucket/runs/swissprot-esm2",
            record=self.record,
            plan=self.plan,
            manifests=self.stored,
            generation=1,
            has_success=self.stop_at is None and not self.has_failed_shard,
            now=self.now,
        )

    def _work(self) -> None:
        for shard in range(self.num_shards):
            while not (shard in self.manifests and self.manifests[shard].is_final):
                slot = min(range(self.num_workers), key=self._clocks.__getitem__)
                if self.stop_at is not None and self._clocks[slot] >= self.stop_at:
                    return
                self._hold(shard, slot)
                if shard in self.manifests and self.manifests[shard].owner is not None:
                    break

    def _hold(self, shard: int, slot: int) -> None:
        now = self._clocks[slot]
        pod = f"{self.name}-{slot}-{self._attempts[slot]}"
        owner = Owner(pod=pod, uid=f"uid-{pod}", node=f"gpu-{slot % 7}")
        found = self.manifests.get(shard)
        current = (
            transitions.first_claim(self.plan.shards[shard], generation=1, owner=owner, commit_id="c", now=now)
            if found is None
            else transitions.claimed(found, owner=owner, commit_id="c", now=now)
        )
        held_since, number = now, 0
        dies_after = self._random.randrange(self.checkpoints_per_shard) if self._random.random() < 0.12 else None
        while len(current.checkpoints) < self.checkpoints_per_shard:
            seconds = self._random.uniform(22, 34)
            if self.stop_at is not None and now + timedelta(seconds=seconds) > self.stop_at:
                self.manifests[shard], self._clocks[slot] = current, self.stop_at
                return
            if dies_after == number:
                self._die(current, owner, slot, held_since, now + timedelta(seconds=seconds * 0.8))
                return
            now, number = now + timedelta(seconds=seconds), number + 1
            current = self._commit(current, number, now, seconds)
        self.manifests[shard] = transitions.committed(current, commit_id="end", records=current.checkpoints[-1].next)
        self._clocks[slot] = now + timedelta(seconds=1)

    def _commit(self, current: ShardManifest, number: int, now: datetime, seconds: float) -> ShardManifest:
        at = len(current.checkpoints)
        first = current.checkpoints[-1].next if at else 0
        size = SHARD_BYTES // self.checkpoints_per_shard
        num_records = size // self._random.randrange(310, 460)
        refused: tuple[Quarantined, ...] = ()
        if self._random.random() < 0.02:
            refused = (
                Quarantined(
                    ordinal=first + num_records,
                    offset=current.start + at * size + 7,
                    id=f"{self.record_id}{current.shard}",
                    quarantine_class=self._random.choice([*QuarantineClass]),
                    detail=f"illegal letter in {self.record_id}",
                ),
            )
        checkpoint = Checkpoint(
            key=layout.build_data_key(1, current.shard, current.epoch, number),
            number=number,
            epoch=current.epoch,
            first=first,
            next=first + num_records + len(refused),
            records=num_records,
            bytes=num_records * 2600,
            sha256="0" * 64,
            created_at=now,
            seconds=round(seconds, 3),
            stall_seconds=round(seconds * 0.01, 3),
            next_offset=current.start + (at + 1) * size,
        )
        return transitions.committed(
            current, commit_id="c", checkpoint=checkpoint, quarantined=refused, bytes_done=(at + 1) * size
        )

    def _die(self, current: ShardManifest, owner: Owner, slot: int, since: datetime, now: datetime) -> None:
        failure_class = self._random.choice(self.bad_ends)
        attempt = Attempt(
            pod=owner.pod,
            uid=owner.uid,
            node=owner.node,
            epoch=current.epoch,
            failure_class=failure_class,
            evidence=self.evidence,
            counted=failure_class not in FREE,
            ended_at=now,
            held_seconds=(now - since).total_seconds(),
        )
        is_last = self.has_failed_shard and current.shard == self.num_shards - 1
        failure = Failure(failure_class=failure_class, detail=f"3 times: {self.evidence}") if is_last else None
        self.manifests[current.shard] = transitions.released(current, attempt=attempt, commit_id="r", failure=failure)
        self._attempts[slot] += 1
        self._clocks[slot] = now + timedelta(seconds=self._random.uniform(40, 180))


def hostile() -> Story:
    """A run whose name, record ids and evidence try to act on the page."""
    story = Story(
        num_shards=12,
        num_workers=3,
        name=f"run{HOSTILE}",
        record_id=HOSTILE,
        evidence=HOSTILE,
        seed=4,
        has_failed_shard=True,
    )
    last = story.manifests[0]
    story.manifests[0] = replace(
        last,
        quarantined=(
            Quarantined(
                ordinal=10**6, offset=0, id=HOSTILE, quarantine_class=QuarantineClass.POISON_INPUT, detail=HOSTILE
            ),
        ),
    )
    return story
