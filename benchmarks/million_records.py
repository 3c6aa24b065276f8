"""A FASTA of a million short records: how long planning takes, how fast it runs, and how much memory each process takes.

    python benchmarks/million_records.py [--records N] [--json]

Goals: planned in under 2 s; every worker parent below 600 MB of resident memory. Exit code 1 when one is missed.
The records are random peptides of 20 to 60 residues, made with a fixed seed; the model is kmer, two workers, one directory.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from contract import plan
from contract.plan import InputFormat
from contract.store.inputs import list_inputs

MAX_PLAN_S = 2.0
MAX_PARENT_RSS_BYTES = 600 * 10**6
SHARD_BYTES = 4 * 2**20
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def write_fasta(path: Path, num_records: int) -> None:
    """Random peptides, each made of two slices of one long random text: fast to write, and no two alike in a row."""
    chance = random.Random(1)
    text = "".join(chance.choices(LETTERS, k=100_000))
    with path.open("w") as file:
        for number in range(num_records):
            start = chance.randrange(99_000)
            file.write(f">r{number}\n{text[start : start + chance.randint(20, 60)]}\n")


def plan_seconds(path: Path) -> tuple[float, int]:
    """Seconds from URIs to the plan's bytes, and the number of shards."""
    started = time.perf_counter()
    objects = list_inputs([str(path)], shard_bytes=SHARD_BYTES)
    shards = plan.cut(objects, generation=1, fmt=InputFormat.FASTA, shard_bytes=SHARD_BYTES)
    plan.to_json(shards)
    return time.perf_counter() - started, len(shards.shards)


def run(directory: Path, source: Path) -> tuple[dict[str, Any], int, int]:
    """`inferencerun run`; returns its summary, and the largest resident memory of a worker parent and of the coordinator."""
    resource = {
        "apiVersion": "inferencerun.dev/v1alpha1",
        "kind": "InferenceRun",
        "metadata": {"name": "million"},
        "spec": {
            "input": {"uris": [str(source)], "shardBytes": SHARD_BYTES},
            "output": {"uri": str(directory / "out")},
            "model": {"name": "kmer"},
            "workers": {"count": 2},
        },
    }
    spec = directory / "run.yaml"
    spec.write_text(yaml.safe_dump(resource))
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "run", str(spec), "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    worker_bytes = coordinator_bytes = 0
    while process.poll() is None:
        try:
            coordinator = psutil.Process(process.pid)
            coordinator_bytes = max(coordinator_bytes, coordinator.memory_info().rss)
            for child in coordinator.children():
                worker_bytes = max(worker_bytes, child.memory_info().rss)
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.05)
    assert process.stdout is not None
    return json.loads(process.stdout.read()), worker_bytes, coordinator_bytes


def main() -> int:
    """Measure, print, and judge by the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="inferencerun-million-"))
    try:
        source = directory / "million.fasta"
        write_fasta(source, arguments.records)
        seconds, num_shards = plan_seconds(source)
        summary, worker_bytes, coordinator_bytes = run(directory, source)
        result = {
            "records": summary["records"],
            "input_mb": round(source.stat().st_size / 1e6, 1),
            "shards": num_shards,
            "plan_s": round(seconds, 3),
            "elapsed_s": summary["elapsedSeconds"],
            "records_per_s": round(summary["records"] / summary["elapsedSeconds"]),
            "worker_parent_rss_mb": round(worker_bytes / 1e6),
            "coordinator_rss_mb": round(coordinator_bytes / 1e6),
            "python": platform.python_version(),
        }
    finally:
        shutil.rmtree(directory)
    if arguments.as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<22} {value}")
    is_good = (
        summary["phase"] == "Succeeded"
        and summary["records"] == arguments.records
        and seconds < MAX_PLAN_S
        and worker_bytes < MAX_PARENT_RSS_BYTES
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
