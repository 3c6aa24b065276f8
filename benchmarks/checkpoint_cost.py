"""What checkpoints cost the model process: ESM-2 8M with and without them, the same batches, interleaved in one run.

    python benchmarks/checkpoint_cost.py [--rounds N] [--json]

A worker as in a pod (parent, model process, a directory as the store) embeds the same proteins again and again; every
second round writes a checkpoint each second, thirty times as often as the `spot` profile does, the others only one at
the end. Cost = time of the model process (busy and idle, from its first batch to its last) with checkpoints, over that
without, less one. Goal: below 2 % even so. Exit code 1 when it is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

import torch

from contract import layout, plan
from contract.manifest import Owner
from contract.names import ExitCode
from contract.plan import InputFormat
from contract.settings import CheckpointSettings, ModelSettings, WorkerSettings
from contract.store.commit import Committer
from contract.store.inputs import list_inputs
from contract.store.local import LocalStore
from contract.store.measured import MeasuredStore
from worker.flight_recorder import FlightRecorder
from worker.metrics import WorkerMetrics
from worker.model_client import ModelProcess
from worker.models.registry import load_preparer
from worker.records.open import read_records
from worker.records.source import open_source
from worker.run import Worker

GOAL = 0.02
SHIPPED = Path(__file__).parents[1] / "examples" / "data" / "proteins.fasta"
MODEL = ModelSettings(name="esm2", source="random:1", parameters={"size": "8M"}, max_tokens_per_batch=2048)
OFF = CheckpointSettings(every_records=10**9, every_seconds=1e9, every_bytes=2**50, emergency_seconds=2e9)
ON = CheckpointSettings(every_records=10**9, every_seconds=1.0, every_bytes=2**50, emergency_seconds=60)


def one_round(
    directory: Path, model: ModelProcess, checkpoint: CheckpointSettings, *, measured_by: WorkerMetrics | None = None
) -> tuple[float, float, int]:
    """Embed all proteins once; returns busy and idle seconds of the model process, and the number of checkpoints."""
    root = directory / uuid.uuid4().hex
    store = LocalStore(root)
    size = SHIPPED.stat().st_size
    objects = list_inputs([str(SHIPPED)], shard_bytes=size)
    shards = plan.cut(objects, generation=1, fmt=InputFormat.FASTA, shard_bytes=size)
    store.put_create(layout.build_plan_key(1), plan.to_json(shards))
    settings = WorkerSettings(
        run="bench",
        run_uid="bench",
        output_uri=store.uri,
        generation=1,
        input_format=InputFormat.FASTA,
        model=MODEL,
        checkpoint=checkpoint,
    )
    source = open_source(objects[0])
    busy_s, idle_s = model.busy_s, model.idle_s
    with FlightRecorder(root / "flight") as recorder:
        worker = Worker(
            settings=settings,
            committer=Committer(
                MeasuredStore(store, measured_by.store_observer("output")) if measured_by is not None else store
            ),
            owner=Owner(pod="bench", uid=uuid.uuid4().hex, node="here"),
            preparer=load_preparer(MODEL),
            model=model,
            recorder=recorder,
            read_records=lambda _plan, manifest, _resume: read_records(
                source,
                fmt=InputFormat.FASTA,
                compression=objects[0].compression,
                start=manifest.start,
                end=manifest.end,
            ),
            now=lambda: datetime.now(UTC),
            new_id=lambda: uuid.uuid4().hex,
            versions={},
            metrics=measured_by or WorkerMetrics(run="bench"),
            drain=threading.Event(),
        )
        assert worker.run() is ExitCode.NO_WORK_LEFT
    num_checkpoints = sum(1 for _ in store.list(layout.build_data_prefix(1)))
    shutil.rmtree(root)
    return model.busy_s - busy_s, model.idle_s - idle_s, num_checkpoints


def main() -> int:
    """Measure, print, and judge by the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="of each kind")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    directory = Path(tempfile.mkdtemp(prefix="inferencerun-bench-"))
    model = ModelProcess(MODEL, device="cpu", num_threads=1)
    try:
        one_round(directory, model, OFF)  # warm
        rounds: dict[str, list[tuple[float, float, int]]] = {"off": [], "on": []}
        for number in range(2 * arguments.rounds):
            kind = ("off", "on", "on", "off")[number % 4]
            rounds[kind].append(one_round(directory, model, ON if kind == "on" else OFF))
    finally:
        model.close()
        shutil.rmtree(directory)
    total = {kind: statistics.median(busy + idle for busy, idle, _ in found) for kind, found in rounds.items()}
    idle = {kind: statistics.median(idle for _, idle, _ in found) for kind, found in rounds.items()}
    checkpoints = statistics.median(number for _, _, number in rounds["on"])
    cost = total["on"] / total["off"] - 1
    idle_cost = (idle["on"] - idle["off"]) / total["off"]
    result = {
        "model": "ESM-2 8M, random weights, one thread",
        "checkpoints_per_round": checkpoints,
        "round_s_without": round(total["off"], 2),
        "round_s_with": round(total["on"], 2),
        "cost_percent": round(100 * cost, 2),
        "cost_of_waiting_percent": round(100 * idle_cost, 3),
        "idle_ms_per_checkpoint": round(1000 * (idle["on"] - idle["off"]) / checkpoints, 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if arguments.as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<26} {value}")
    return 0 if cost < GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
