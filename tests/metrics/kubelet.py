"""A kubelet in miniature: runs the workers of a node-less cluster's pods as processes, and reports what became of them.

The worker gets the environment that its pod says, as a kubelet would give it, but for the port of its metrics: here all
pods share one network.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.client.exceptions import ApiException

from contract import names
from tests.e2e.operator import NAMESPACE, Api
from tests.servers import LOOPBACK, free_port

_EVICTED = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}


@dataclass
class RunningPod:
    """A pod whose worker was started."""

    name: str
    process: subprocess.Popen[bytes]
    metrics_port: int
    started_at: str
    log: Path
    is_evicted: bool = False
    is_reported: bool = False


@dataclass
class Kubelet:
    """All pods of one run. `look` now and then."""

    api: Api
    run: str
    directory: Path
    pods: dict[str, RunningPod] = field(default_factory=dict)
    """By uid."""

    def look(self) -> list[RunningPod]:
        """Start the workers of new pods, report those that ended; returns those that were started now."""
        new = [pod for pod in self.api.pods(self.run) if pod.metadata.uid not in self.pods]
        started = [self._start(pod) for pod in new if pod.metadata.deletion_timestamp is None]
        for pod in self.pods.values():
            if not pod.is_reported and (code := pod.process.poll()) is not None:
                self._report(pod, code)
        return started

    def evict(self, pod: RunningPod) -> None:
        """SIGTERM, with the condition that tells an eviction."""
        pod.is_evicted = True
        pod.process.terminate()

    def end(self) -> None:
        """Kill what is left."""
        for pod in self.pods.values():
            pod.process.kill()
            pod.process.wait()

    def _start(self, pod: Any) -> RunningPod:
        name, port = pod.metadata.name, free_port()
        fields = {"metadata.name": name, "metadata.uid": pod.metadata.uid, "spec.nodeName": "here"}
        (container,) = pod.spec.containers
        environment = {
            item.name: item.value.replace("$$", "$") if item.value else fields[item.value_from.field_ref.field_path]
            for item in container.env
            if item.value or item.value_from.field_ref
        }
        assert environment[names.ENV_METRICS_PORT] == str(container.ports[0].container_port)
        own = {
            names.ENV_METRICS_PORT: str(port),
            names.ENV_METRICS_HOST: LOOPBACK,
            names.ENV_TERMINATION_LOG: str(self.directory / f"{name}.flight"),
        }
        log = self.directory / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker"], env={**os.environ, **environment, **own}, stdout=out, stderr=out
            )
        found = RunningPod(name, process, port, _now(), log)
        self.pods[pod.metadata.uid] = found
        self._patch(name, {"phase": "Running", "containerStatuses": [_status({"running": {"startedAt": _now()}})]})
        return found

    def _report(self, pod: RunningPod, code: int) -> None:
        state = {"exitCode": code if code >= 0 else 128 - code, "startedAt": pod.started_at, "finishedAt": _now()}
        flight = self.directory / f"{pod.name}.flight"
        ended = {**state, "reason": "Error", "message": flight.read_text() if flight.exists() else ""}
        self._patch(
            pod.name,
            {
                "phase": "Failed" if code else "Succeeded",
                "conditions": [_EVICTED] if pod.is_evicted else [],
                "containerStatuses": [_status({"terminated": ended})],
            },
        )
        pod.is_reported = True

    def _patch(self, name: str, status: dict[str, Any]) -> None:
        try:
            self.api.core.patch_namespaced_pod_status(name, NAMESPACE, {"status": status})
        except ApiException as error:
            if error.status != 404:  # deleted: a pod without a node goes at once
                raise


def _status(state: dict[str, Any]) -> dict[str, Any]:
    return {"name": "worker", "image": "none", "imageID": "", "ready": False, "restartCount": 0, "state": state}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
