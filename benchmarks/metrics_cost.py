"""What metrics cost a worker: the same batches with and without them, interleaved in one run.

    python benchmarks/metrics_cost.py [--rounds N] [--json]

As `checkpoint_cost.py`, a checkpoint each second. With metrics means that the store is measured and that somebody scrapes
once a second, thirty times as often as usual. Told are the CPU time of the worker's parent, where all of it happens, and
the time of the model process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from checkpoint_cost import MODEL, OFF, ON, one_round

from contract import names
from worker.metrics import WorkerMetrics, serve
from worker.model_client import ModelProcess

PORT = 19_090
HOST = "127.0.0.1"


@contextmanager
def scraped(metrics: WorkerMetrics) -> Iterator[None]:
    """Serve the metrics, and read them once a second."""
    server = serve(metrics, {names.ENV_METRICS_PORT: str(PORT), names.ENV_METRICS_HOST: HOST})
    assert server is not None, f"port {PORT} is taken"
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(1.0):
            with urllib.request.urlopen(f"http://{HOST}:{PORT}/metrics", timeout=10) as reply:
                reply.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        server.shutdown()
        server.server_close()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="of each kind")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    directory = Path(tempfile.mkdtemp(prefix="inferencerun-bench-"))
    model = ModelProcess(MODEL, device="cpu", num_threads=1)
    rounds: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
    try:
        one_round(directory, model, OFF)  # warm
        for number in range(2 * arguments.rounds):
            kind = ("off", "on", "on", "off")[number % 4]
            started_s = time.process_time()
            if kind == "on":
                metrics = WorkerMetrics(run="bench")
                with scraped(metrics):
                    busy_s, idle_s, _ = one_round(directory, model, ON, measured_by=metrics)
            else:
                busy_s, idle_s, _ = one_round(directory, model, ON)
            rounds[kind].append((time.process_time() - started_s, busy_s + idle_s))
    finally:
        model.close()
        shutil.rmtree(directory)
    parent_s = {kind: statistics.median(cpu_s for cpu_s, _ in found) for kind, found in rounds.items()}
    model_s = {kind: statistics.median(total_s for _, total_s in found) for kind, found in rounds.items()}
    result = {
        "rounds_of_each": arguments.rounds,
        "parent_cpu_s_without": round(parent_s["off"], 3),
        "parent_cpu_s_with": round(parent_s["on"], 3),
        "model_s_without": round(model_s["off"], 2),
        "model_s_with": round(model_s["on"], 2),
        "cost_percent_of_model_time": round(100 * (parent_s["on"] - parent_s["off"]) / model_s["off"], 3),
    }
    if arguments.as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<28} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
