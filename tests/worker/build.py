"""Builders for the worker's tests: each states only what differs from an ordinary small run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch

from contract import layout, manifest
from contract.manifest import Owner, ShardManifest
from contract.plan import Compression, InputFormat, InputObject, Plan, Shard, cut
from contract.settings import CheckpointSettings, ModelSettings, RowKind, WorkerSettings
from contract.store.commit import Committer
from contract.store.local import LocalStore
from contract.store.memory import MemoryStore
from contract.store.protocol import ObjectStore
from tests.kill.one_worker import build_worker, write_plan
from tests.models_for_tests import row_of
from worker.batching import Item
from worker.model_client import ModelProcess, Outcome
from worker.run import Worker

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
FORK = multiprocessing.get_context("fork")
"""Fast: torch is imported already. The children compute on one thread, so no lock of the parent's is needed there."""

ME = Owner(pod="me", uid="uid-me", node="here")
RIVAL = Owner(pod="rival", uid="uid-rival", node="there")


def item(ordinal: int, *, tokens: int = 1, payload: Any = None, is_truncated: bool = False) -> Item:
    """Record `ordinal`, ten bytes long."""
    return Item(
        ordinal=ordinal,
        offset=10 * ordinal,
        next_offset=10 * ordinal + 10,
        position=10 * ordinal + 10,
        id=f"r{ordinal}",
        payload=payload if payload is not None else f"record {ordinal}",
        num_tokens=tokens,
        is_truncated=is_truncated,
    )


def items(numbers: Iterable[int], *, tokens: int = 1) -> tuple[Item, ...]:
    """Records of equal size."""
    return tuple(item(number, tokens=tokens) for number in numbers)


def shard(number: int = 0) -> Shard:
    """A shard of 1,000 bytes."""
    return Shard(shard=number, object="s3://in/a.fasta", start=0, end=1000, compression=Compression.NONE)


def plan(num_shards: int = 3) -> Plan:
    """A plan of shards of 100 bytes."""
    source = InputObject(uri="s3://in/a.fasta", size=100 * num_shards, etag="e")
    return cut([source], generation=1, fmt=InputFormat.FASTA, shard_bytes=100)


def ids(prefix: str = "id") -> Callable[[], str]:
    """Ids that differ from call to call."""
    numbers = count()
    return lambda: f"{prefix}-{next(numbers)}"


def impatient(store: ObjectStore) -> Committer:
    """A committer that never sleeps: its clock moves with each wait, so its budget still ends."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    return Committer(store, sleep=sleep, clock=lambda: clock[0], uniform=lambda _, high: high)


def stored_manifest(store: ObjectStore, number: int = 0) -> ShardManifest:
    """What the store says of a shard."""
    key = layout.build_shard_key(1, number)
    return manifest.from_json(store.get(key).body, where=key)


def put_manifest(store: MemoryStore, value: ShardManifest) -> None:
    """Place a version as somebody else would have."""
    store.put_overwrite(layout.build_shard_key(1, value.shard), manifest.to_json(value))


def model(name: str = "build", *, kind: RowKind = RowKind.POOLED, dtype: str = "float32", **parameters: Any) -> Any:
    """Settings of a model of `tests.models_for_tests`."""
    return ModelSettings(
        name="torch",
        source=f"tests.models_for_tests:{name}",
        parameters=parameters,
        kind=kind,
        dtype=dtype,
        max_tokens_per_batch=60,
    )


def process(settings: ModelSettings, *, no_progress_seconds: float = 60.0) -> ModelProcess:
    """A model process by a plain fork."""
    return ModelProcess(settings, device="cpu", num_threads=1, no_progress_seconds=no_progress_seconds, context=FORK)


def checkpoints(**changes: Any) -> CheckpointSettings:
    """Thresholds that no small test reaches, but for `changes`."""
    ordinary = CheckpointSettings(every_records=10**6, every_seconds=1e6, every_bytes=2**40, emergency_seconds=2e6)
    return replace(ordinary, **changes)


def settings(output_uri: str = "memory://out", **changes: Any) -> WorkerSettings:
    """Settings of a run of kmer."""
    ordinary = WorkerSettings(
        run="run",
        run_uid="run-uid",
        output_uri=output_uri,
        generation=1,
        input_format=InputFormat.FASTA,
        model=ModelSettings(name="kmer", max_tokens_per_batch=60),
        checkpoint=checkpoints(),
        no_progress_seconds=60.0,
    )
    return replace(ordinary, **changes)


class WatchedProcess(ModelProcess):
    """A model process that keeps what was submitted and received, and calls `on_receive` after each look."""

    def __init__(self, settings: ModelSettings, **options: Any) -> None:
        super().__init__(settings, device="cpu", num_threads=1, context=FORK, **options)
        self.submitted: list[tuple[list[Any], int]] = []
        """Payloads of each batch, and how many batches were in the process already."""
        self.outcomes: list[Outcome] = []
        self.on_receive: Callable[[Outcome | None], None] = lambda _: None

    def submit(self, payloads: Sequence[Any], *, is_fp32: bool = False) -> None:
        """See ModelProcess."""
        self.submitted.append((list(payloads), self.num_in_flight))
        super().submit(payloads, is_fp32=is_fp32)

    def receive(self, timeout_s: float) -> Outcome | None:
        """See ModelProcess."""
        outcome = super().receive(min(timeout_s, 0.02))
        if outcome is not None:
            self.outcomes.append(outcome)
        self.on_receive(outcome)
        return outcome

    def outcomes_of(self, kind: str) -> int:
        """How many outcomes were of this kind."""
        return sum(type(outcome).__name__ == kind for outcome in self.outcomes)


@dataclass
class SmallRun:
    """A run over the FASTA file `in.fasta`, and the workers on it."""

    root: Path
    sequences: Sequence[str]
    settings: WorkerSettings = field(default_factory=settings)
    num_shards: int = 1
    files: dict[str, bytes] = field(default_factory=dict)
    """More input objects, by name; each is a shard of its own."""

    def __post_init__(self) -> None:
        inputs = self.root / "in"
        inputs.mkdir(parents=True)
        self.source = inputs / "in.fasta"
        self.source.write_text("".join(f">r{number}\n{text}\n" for number, text in enumerate(self.sequences)))
        for name, content in self.files.items():
            (inputs / name).write_bytes(content)
        self.store = LocalStore(self.root / "out")
        self.plan = write_plan(
            self.store, f"file://{inputs}/", shard_bytes=-(-self.source.stat().st_size // self.num_shards)
        )
        self._num_workers = 0

    def worker(self, store: ObjectStore | None = None, **changes: Any) -> Worker:
        """A worker of its own name; `changes` go into its settings."""
        self._num_workers += 1
        uid = f"uid-{self._num_workers}"
        built = build_worker(
            store or self.store,
            replace(self.settings, output_uri=f"file://{self.root}/out", **changes),
            uid=uid,
            flight=self.root / f"{uid}.flight",
        )
        built.model = WatchedProcess(built.settings.model, no_progress_seconds=built.settings.no_progress_seconds)
        return built

    def manifest(self, number: int = 0) -> ShardManifest:
        """What the store says of a shard."""
        return stored_manifest(self.store, number)

    def contents(self, number: int = 0) -> list[dict[str, Any]]:
        """The committed checkpoints of a shard, loaded, in input order."""
        found = sorted(self.manifest(number).checkpoints, key=lambda entry: entry.first)
        return [torch.load(self.root / "out" / entry.key, weights_only=True) for entry in found]

    def reasons(self, number: int = 0) -> list[str]:
        """Why each committed checkpoint of a shard was written."""
        return [content["metadata"]["reason"] for content in self.contents(number)]

    def rows(self) -> dict[str, tuple[float, ...]]:
        """Row of each id in all committed checkpoints; an id met twice fails the test."""
        rows: dict[str, tuple[float, ...]] = {}
        for number in range(len(self.plan.shards)):
            for content in self.contents(number):
                for name, row in zip(content["sequence_ids"], content["embeddings"], strict=True):
                    assert name not in rows, f"{name} is in two checkpoints"
                    rows[name] = tuple(row.tolist())
        return rows

    def quarantine(self) -> dict[str, str]:
        """Class of each quarantined id."""
        return {
            entry.id: entry.quarantine_class.value
            for number in range(len(self.plan.shards))
            for entry in self.manifest(number).quarantined
        }


LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def proteins(num_records: int) -> list[str]:
    """Sequences of 3 to 20 letters, no two alike, none with an X."""
    return [
        LETTERS[number % 20] * (1 + number % 7)
        + LETTERS[number // 20 % 20]
        + "MKVA"[: 1 + number % 4] * (number % 4 + 1)
        for number in range(num_records)
    ]


def expected_rows(sequences: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """What a model of `tests.models_for_tests` gives for every record that it can embed."""
    return {f"r{number}": tuple(row_of(text)) for number, text in enumerate(sequences)}


def without(rows: dict[str, tuple[float, ...]], *names: str) -> dict[str, tuple[float, ...]]:
    """All rows but these."""
    return {name: row for name, row in rows.items() if name not in names}


def ticking(step_s: float = 1.0) -> Callable[[], float]:
    """A clock that moves by a step each time it is looked at."""
    ticks = count()
    return lambda: next(ticks) * step_s
