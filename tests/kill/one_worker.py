"""One worker over a given store, in a process of its own, forked so that torch need not be imported again."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from contract import layout, manifest, plan
from contract.manifest import Owner
from contract.plan import InputFormat, Plan
from contract.settings import CheckpointSettings, ModelSettings, WorkerSettings
from contract.store.commit import Committer
from contract.store.inputs import list_inputs
from contract.store.local import LocalStore
from contract.store.protocol import ObjectStore
from worker.flight_recorder import FlightRecorder
from worker.metrics import WorkerMetrics
from worker.model_client import ModelProcess
from worker.models.registry import load_preparer
from worker.records.open import read_records
from worker.records.source import open_source
from worker.run import Worker


def settings_for(output_uri: str, *, every_records: int = 4, model: ModelSettings | None = None) -> WorkerSettings:
    """Settings that make several small checkpoints a shard."""
    return WorkerSettings(
        run="kill",
        run_uid="kill-uid",
        output_uri=output_uri,
        generation=1,
        input_format=InputFormat.FASTA,
        model=model or ModelSettings(name="kmer", max_tokens_per_batch=120),
        checkpoint=CheckpointSettings(
            every_records=every_records, every_seconds=300, every_bytes=2**28, emergency_seconds=600
        ),
    )


def write_plan(store: ObjectStore, uri: str, *, shard_bytes: int) -> Plan:
    """Plan one input object into `store`."""
    objects = list_inputs([uri], shard_bytes=shard_bytes)
    shards = plan.cut(objects, generation=1, fmt=InputFormat.FASTA, shard_bytes=shard_bytes)
    store.put_create(layout.build_plan_key(1), plan.to_json(shards))
    return shards


def build_worker(store: ObjectStore, settings: WorkerSettings, *, uid: str, flight: Path) -> Worker:
    """A worker with a real model process and a real reader."""

    def read(shards, manifest, resume):
        planned = next(item for item in shards.objects if item.uri == manifest.object)
        return read_records(
            open_source(planned),
            fmt=shards.format,
            compression=planned.compression,
            start=manifest.start,
            end=manifest.end,
            first_ordinal=resume.first_ordinal,
            resume_offset=resume.offset,
        )

    return Worker(
        settings=settings,
        committer=Committer(store),
        owner=Owner(pod=uid, uid=uid, node="here"),
        preparer=load_preparer(settings.model),
        model=ModelProcess(settings.model, device="cpu", num_threads=1, context=multiprocessing.get_context("fork")),
        recorder=FlightRecorder(flight),
        read_records=read,
        now=lambda: datetime.now(UTC),
        new_id=lambda: uuid.uuid4().hex,
        versions={"torch": str(torch.__version__)},
        metrics=WorkerMetrics(run=settings.run),
        drain=threading.Event(),
    )


@dataclass(frozen=True)
class Ended:
    """How a forked process ended."""

    exit_code: int | None
    signal: int | None
    seen: bytes
    """What it wrote to its pipe before it ended."""


def in_fork(work: Callable[[], bytes]) -> Ended:
    """Run `work` in a forked process and wait for its end; 70 is an unexpected error, whose traceback is printed."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.close(read_end)
            os.write(write_end, work())
            code = 0
        except BaseException:  # noqa: BLE001  (a forked child must never return into pytest)
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        seen = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Ended(None, os.WTERMSIG(status), seen)
    return Ended(os.WEXITSTATUS(status), None, seen)


def rows_of(root: Path) -> dict[tuple[str, int], bytes]:
    """(object, offset) -> bytes of the row, of everything the manifests name; a record met twice is an error."""
    store = LocalStore(root)
    rows: dict[tuple[str, int], bytes] = {}
    for entry in store.list(layout.build_shards_prefix(1)):
        found = manifest.from_json(store.get(entry.key).body, where=entry.key)
        for item in found.checkpoints:
            content = torch.load(root / item.key, weights_only=True)
            for offset, row in zip(content["metadata"]["offsets"].tolist(), content["embeddings"], strict=True):
                assert (found.object, offset) not in rows, f"{found.object}@{offset} is in two checkpoints"
                rows[found.object, offset] = row.numpy().tobytes()
    return rows
