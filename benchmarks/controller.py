"""The controller with many pods that no kubelet runs: its memory, its requests, and how fast it replaces what ends.

    python -m benchmarks.controller [--pods N] [--json]

A control plane without nodes (`tests/cluster`, root), a store on loopback, one run. The pods' status is patched from
outside: all run, then a tenth of them is evicted. Goals: the replacement of an evicted pod is created within 2 s (p99)
while ten end each second; below 300 MB of resident memory. Exit code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from contract.store.s3 import S3Store
from tests.cluster.cluster import Cluster
from tests.e2e.operator import (
    NAMESPACE,
    Api,
    ControllerProcess,
    PodWatch,
    controller_environment,
    end,
    resource,
    wait_for,
)
from tests.servers import ministack

PROJECT = Path(__file__).resolve().parents[1]
MAX_RESPONSE_S = 2.0
MAX_RSS_BYTES = 300 * 10**6
IDLE_S = 60
"""For how long requests are counted while nothing happens."""
NAME = "bench"


def patch(api: Api, name: str, status: dict[str, Any]) -> None:
    """What a kubelet would report of a pod."""
    api.core.patch_namespaced_pod_status(name, NAMESPACE, {"status": status})


def running() -> dict[str, Any]:
    """The worker runs."""
    state = {"running": {"startedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}}
    return {"phase": "Running", "containerStatuses": [_container(state)]}


def evicted() -> dict[str, Any]:
    """The worker has drained."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    state = {"terminated": {"exitCode": 143, "reason": "Error", "startedAt": now, "finishedAt": now}}
    return {"phase": "Failed", "containerStatuses": [_container(state)]}


def _container(state: dict[str, Any]) -> dict[str, Any]:
    return {"name": "worker", "image": "none", "imageID": "", "ready": False, "restartCount": 0, "state": state}


def measure(
    cluster: Cluster, endpoint: str, environment: dict[str, str], directory: Path, num_pods: int
) -> dict[str, Any]:
    """All figures."""
    os.environ.update(environment)
    bucket = "controller-benchmark"
    store = S3Store(bucket, "")
    S3Store(bucket)._clients.retrying.create_bucket(Bucket=bucket)  # noqa: SLF001
    store.put_create("in.fasta", (PROJECT / "examples/data/proteins.fasta").read_bytes() * 100)
    api = Api(cluster.kubeconfig)
    api.install_crd(PROJECT / "deploy/crd.yaml")
    settings = {"lease_namespace": "default", "poll_s": "5"}
    controller = ControllerProcess(
        controller_environment(cluster.kubeconfig, environment, **settings), directory / "log"
    )
    controller.start()
    try:
        spec = resource(NAME, [f"s3://{bucket}/in.fasta"], f"s3://{bucket}/out", endpoint, workers={"count": num_pods})
        spec["spec"]["input"]["shardBytes"] = 10_000_000 // num_pods
        started_s = time.monotonic()
        api.apply(spec)
        wait_for(lambda: len(api.pods(NAME)) >= num_pods, f"{num_pods} pods")
        created_s = time.monotonic() - started_s
        names = [pod.metadata.name for pod in api.pods(NAME)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: patch(api, name, running()), names))
        wait_for(lambda: api.status(NAME)["workers"]["ready"] == num_pods, "all pods to be seen")
        time.sleep(IDLE_S)
        idle_bytes = controller.memory_bytes()
        with PodWatch(cluster.kubeconfig).watching() as watch:
            wait_for(lambda: len(watch.created()) >= num_pods, "the watch of pods")
            for name in names[:: max(1, num_pods // 50)]:
                patch(api, name, evicted())
                time.sleep(0.1)
            time.sleep(10)
        peak_bytes = max(idle_bytes, controller.memory_bytes())
        waits_s = sorted(responses(watch))
    finally:
        assert controller.process is not None
        end(controller.process)
    requests = next(line["requests"] for line in controller.lines() if line["message"] == "ended")
    return {
        "pods": num_pods,
        "all_created_s": round(created_s, 1),
        "idle_rss_mb": round(idle_bytes / 1e6),
        "rss_mb": round(peak_bytes / 1e6),
        "replaced": len(waits_s),
        "response_p50_s": round(statistics.median(waits_s), 2),
        "response_p99_s": round(waits_s[max(0, len(waits_s) * 99 // 100 - 1)], 2),
        "requests": requests,
        "python": platform.python_version(),
    }


def responses(watch: PodWatch) -> list[float]:
    """Seconds from the API showing the end of a pod to its showing the replacement."""
    created = {key.rpartition("/")[0]: at_s for key, at_s in watch.created().items()}
    found = []
    for key, ended_s in watch.ended().items():
        slot, _, attempt = key.rpartition("/")[0].rpartition("-")
        following = created.get(f"{slot}-{int(attempt) + 1}")
        if following is not None:
            found.append(following - ended_s)
    return found


def main() -> int:
    """Measure, print, and judge by the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=500)
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferencerun-controller-") as name:
        directory = Path(name)
        with ministack(directory) as server, Cluster(directory / "cluster", nodes=0) as cluster:
            result = measure(cluster, server.endpoint_url, server.environment, directory, arguments.pods)
    if arguments.as_json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:<22} {value}")
    is_good = result["response_p99_s"] <= MAX_RESPONSE_S and result["rss_mb"] * 10**6 <= MAX_RSS_BYTES
    return 0 if is_good and result["replaced"] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
