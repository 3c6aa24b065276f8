"""The controller as a process, a cluster's API, and runs: what the end-to-end tests do and look at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes
import urllib3
from kubernetes.client.exceptions import ApiException

from contract.names import API_GROUP, API_VERSION, CONTAINER_WORKER, LABEL_RUN_UID
from tests.chart.rendering import NAMESPACE as INSTALLED_IN
from tests.chart.rendering import RELEASE
from tests.cluster.cluster import Cluster
from tests.cluster.images import image_name

NAMESPACE = "default"
RUNS = (API_GROUP, API_VERSION, NAMESPACE, "inferenceruns")
PATIENCE_S = 240.0
"""Two cores run a control plane, two nodes and all pods: torch alone takes 10 s to be imported by four pods at a time."""


def wait_for(
    look: Callable[[], Any], what: str, *, patience_s: float = PATIENCE_S, why: Callable[[], Any] = str
) -> Any:
    """The first true value of `look`; otherwise an AssertionError that says `what` was waited for, and `why` not in vain."""
    deadline_s = time.monotonic() + patience_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline_s:
            raise AssertionError(f"waited {patience_s:.0f} s for {what}; {why()}")
        time.sleep(0.25)


@dataclass
class ControllerProcess:
    """A controller as a process of this machine."""

    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its log is appended to."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "controller"], env=self.environment, stdout=log, stderr=log
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it while in the block."""
        self.start()
        try:
            yield
        finally:
            assert self.process is not None
            end(self.process)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process is not None and self.process.poll() is None

    def lines(self) -> list[dict[str, Any]]:
        """Its log."""
        found = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [json.loads(line) for line in found]

    def memory_bytes(self) -> int:
        """Resident memory."""
        assert self.process is not None
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


class ControllerPod:
    """The controller that the chart has installed."""

    def __init__(self, cluster: Cluster) -> None:
        api = client(cluster.kubeconfig)
        self._cluster = cluster
        self._core = kubernetes.client.CoreV1Api(api)
        self._apps = kubernetes.client.AppsV1Api(api)

    def start(self) -> None:
        """Have one run, and wait until it is ready."""
        self._scale(1)
        wait_for(lambda: self.is_running, "the controller to be ready", patience_s=120, why=self._pods)

    def stop(self) -> None:
        """Have none run."""
        self._scale(0)
        wait_for(lambda: not self._pods(), "the controller to end", patience_s=60)

    def crash(self) -> None:
        """SIGKILL of its processes. The kubelet starts it again: at once, then after waits that double from 10 s on."""
        for pod in self._pods():
            if pod.spec.node_name:
                self._cluster.kill_pod(pod.spec.node_name, pod.metadata.uid)

    def kill(self) -> None:
        """The same, and its pod is gone with them; another takes its place at once."""
        pods = self._pods()
        self.crash()
        for pod in pods:
            try:
                self._core.delete_namespaced_pod(pod.metadata.name, INSTALLED_IN, grace_period_seconds=0)
            except ApiException as error:
                if error.status != 404:
                    raise

    @property
    def is_running(self) -> bool:
        """Whether it is ready."""
        return any(
            condition.type == "Ready" and condition.status == "True"
            for pod in self._pods()
            if pod.metadata.deletion_timestamp is None
            for condition in pod.status.conditions or []
        )

    def instances(self) -> dict[str, int]:
        """Restarts of each of its pods: a change says that it did not survive."""
        return {
            pod.metadata.uid: sum(status.restart_count for status in pod.status.container_statuses or [])
            for pod in self._pods()
        }

    def _pods(self) -> list[Any]:
        selector = "app.kubernetes.io/component=controller"
        return list(self._core.list_namespaced_pod(INSTALLED_IN, label_selector=selector).items)

    def _scale(self, count: int) -> None:
        self._apps.patch_namespaced_deployment_scale(RELEASE, INSTALLED_IN, {"spec": {"replicas": count}})


@dataclass
class PodWatch:
    """What the API shows of pods, as it shows it: (seconds, event, pod)."""

    kubeconfig: Path
    seen: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[PodWatch]:
        """Watch in a thread while in the block."""
        core = kubernetes.client.CoreV1Api(client(self.kubeconfig))
        watch = kubernetes.watch.Watch()
        is_over = threading.Event()

        def follow() -> None:
            while not is_over.is_set():
                try:
                    for event in watch.stream(core.list_namespaced_pod, NAMESPACE, timeout_seconds=5):
                        self.seen.append((time.monotonic(), event["type"], event["raw_object"]))
                except (ApiException, urllib3.exceptions.HTTPError):
                    is_over.wait(0.2)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            is_over.set()
            watch.stop()
            thread.join(10)

    def created(self) -> dict[str, float]:
        """When each pod was first seen, by name and uid."""
        found: dict[str, float] = {}
        for at_s, _, pod in self.seen:
            found.setdefault(f"{pod['metadata']['name']}/{pod['metadata']['uid']}", at_s)
        return found

    def ended(self) -> dict[str, float]:
        """When each pod was first seen as ended: terminal, or gone."""
        found: dict[str, float] = {}
        for at_s, kind, pod in self.seen:
            if kind == "DELETED" or (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
                found.setdefault(f"{pod['metadata']['name']}/{pod['metadata']['uid']}", at_s)
        return found


def client(kubeconfig: Path) -> kubernetes.client.ApiClient:
    """A client of the administrator."""
    return kubernetes.config.new_client_from_config(config_file=str(kubeconfig))


class Api:
    """Runs and pods of the test namespace."""

    def __init__(self, kubeconfig: Path) -> None:
        api = client(kubeconfig)
        self.core = kubernetes.client.CoreV1Api(api)
        self.custom = kubernetes.client.CustomObjectsApi(api)
        self.extensions = kubernetes.client.ApiextensionsV1Api(api)

    def install_crd(self, path: Path) -> None:
        """Create the CRD, or replace the one that is there, and wait until it is served."""
        import yaml  # noqa: PLC0415

        body = yaml.safe_load(path.read_text())
        name = body["metadata"]["name"]
        try:
            self.extensions.create_custom_resource_definition(body)
        except ApiException as error:
            if error.status != 409:
                raise
            found = self.extensions.read_custom_resource_definition(name)
            body["metadata"]["resourceVersion"] = found.metadata.resource_version
            self.extensions.replace_custom_resource_definition(name, body)
        wait_for(self._is_served, "the CRD to be served", patience_s=30)

    def _is_served(self) -> bool:
        try:
            self.custom.list_namespaced_custom_object(*RUNS)
        except ApiException:
            return False
        return True

    def apply(self, resource: dict[str, Any]) -> dict[str, Any]:
        """Create a run."""
        created: dict[str, Any] = self.custom.create_namespaced_custom_object(*RUNS, resource)
        return created

    def run(self, name: str) -> dict[str, Any] | None:
        """A run, None when there is none."""
        try:
            found: dict[str, Any] = self.custom.get_namespaced_custom_object(*RUNS, name)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def status(self, name: str) -> dict[str, Any]:
        """Its status, empty before there is one."""
        return (self.run(name) or {}).get("status") or {}

    def patch(self, name: str, spec: dict[str, Any]) -> None:
        """Merge-patch the spec of a run."""
        self.custom.patch_namespaced_custom_object(*RUNS, name, {"spec": spec})

    def delete(self, name: str, *, waits_for_pods: bool = True) -> None:
        """Delete a run; returns at once. The run is gone once its pods are, or at once if it does not wait for them."""
        policy = "Foreground" if waits_for_pods else "Background"
        self.custom.delete_namespaced_custom_object(*RUNS, name, propagation_policy=policy)

    def pods(self, run_name: str) -> list[Any]:
        """Pods of a run."""
        run = self.run(run_name)
        if run is None:
            return []
        selector = f"{LABEL_RUN_UID}={run['metadata']['uid']}"
        return list(self.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items)

    def running_pods(self, run_name: str) -> list[Any]:
        """Those whose worker runs, and that nobody has deleted."""
        return [
            pod
            for pod in self.pods(run_name)
            if pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None
        ]

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """One of its conditions, empty when it is not there."""
        return next((item for item in self.status(name).get("conditions") or [] if item["type"] == kind), {})

    def wait_for_phase(self, name: str, *phases: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The status once it is in one of `phases`."""
        wait_for(
            lambda: self.status(name).get("phase") in phases,
            f"run {name} to be {' or '.join(phases)}",
            patience_s=patience_s,
            why=lambda: self.status(name),
        )
        return self.status(name)


def evict(api: Api, name: str, *, namespace: str = NAMESPACE) -> None:
    """The Eviction API, in the version that the server has."""
    for version in ("v1", "v1beta1"):
        body = {
            "apiVersion": f"policy/{version}",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
        }
        try:
            api.core.create_namespaced_pod_eviction(name, namespace, body)
        except ApiException as error:
            if version == "v1beta1" or error.status not in {400, 404}:
                raise
        else:
            return


def worker_template(
    endpoint: str, *, environment: dict[str, str] | None = None, pod: dict[str, Any] | None = None, **container: Any
) -> dict[str, Any]:
    """A template of workers that reach the store on loopback.

    Args:
        endpoint: of the store.
        environment: more variables.
        pod: more fields of the pod's spec.
        container: more fields of the worker container.
    """
    variables = {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    worker = {
        "name": CONTAINER_WORKER,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        **container,
    }
    return {"spec": {"hostNetwork": True, "containers": [worker], **(pod or {})}}


def resource(
    name: str, uris: list[str], output: str, endpoint: str, *, labels: dict[str, str] | None = None, **changes: Any
) -> dict[str, Any]:
    """A run whose pods reach the store on loopback.

    Args:
        name: of the run.
        uris: of the input.
        output: URI.
        endpoint: of the store.
        labels: of the resource.
        changes: sections of the spec, merged over the default ones.
    """
    spec: dict[str, Any] = {
        "input": {"uris": uris, "shardBytes": "32Ki"},
        "output": {"uri": output},
        "model": {"name": "kmer"},
        "workers": {
            "count": 2,
            "gpusPerWorker": 0,
            "template": worker_template(endpoint),
        },
        "failurePolicy": {"backoff": {"replaceSeconds": 0}},
    }
    for section, change in deepcopy(changes).items():
        if isinstance(change, dict):
            spec.setdefault(section, {}).update(change)
        else:
            spec[section] = change
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": "InferenceRun",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels or {}},
        "spec": spec,
    }


SLOW_MODEL = {
    "name": "esm2",
    "source": "random:1",
    "parameters": {"size": "8M"},
    "maxTokensPerBatch": 1024,
    "maxLength": 256,
}
"""Real work of some ten records a second and core: time enough to do harm."""

CHECKPOINT_OFTEN = {"everySeconds": 2, "emergencySeconds": 20}


def verified(output: str, environment: dict[str, str]) -> dict[str, Any]:
    """What `inferencerun verify` says of an output; an AssertionError with its words when anything is off."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "verify", output, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def controller_environment(kubeconfig: Path, store: dict[str, str], **settings: str) -> dict[str, str]:
    """Environment of a controller process on this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "INFERENCERUN_"))}
    given = {f"INFERENCERUN_CONTROLLER_{name.upper()}": value for name, value in settings.items()}
    return {
        **kept,
        **store,
        "KUBECONFIG": str(kubeconfig),
        "INFERENCERUN_CONTROLLER_WORKER_IMAGE": image_name("worker"),
        "INFERENCERUN_CONTROLLER_WORKER_IMAGE_PULL_POLICY": "Never",
        "INFERENCERUN_CONTROLLER_HEALTH_ADDRESS": "127.0.0.1",
        "INFERENCERUN_CONTROLLER_HEALTH_PORT": "0",
        "INFERENCERUN_CONTROLLER_LEASE_NAMESPACE": "inferencerun",
        "INFERENCERUN_CONTROLLER_POLL_S": "1",
        "INFERENCERUN_CONTROLLER_LEASE_DURATION_S": "4",
        "INFERENCERUN_CONTROLLER_LEASE_RENEW_DEADLINE_S": "3",
        "INFERENCERUN_CONTROLLER_LEASE_RETRY_S": "0.5",
        "PYTHONUNBUFFERED": "1",
        **given,
    }


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
