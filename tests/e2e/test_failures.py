"""Failures that are somebody's fault, on real kubelets: each is charged to whom it belongs, bounded, and explained."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from contract.layout import build_logs_prefix
from contract.store.open import open_store
from contract.store.s3 import S3Store
from tests.cluster.cluster import Cluster
from tests.e2e.conftest import Bucket, Run
from tests.e2e.operator import (
    CHECKPOINT_OFTEN,
    NAMESPACE,
    SLOW_MODEL,
    Api,
    PodWatch,
    evict,
    wait_for,
    worker_template,
)
from tests.faults import LOOPBACK, Fault, FaultProxy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = "harmful-model"
MEMORY = "900Mi"
"""torch alone takes 500 MiB in the two processes of a worker."""
FEW_RECORDS = 40
_objects = itertools.count(1)


@pytest.fixture(scope="session")
def model_map(api: Api) -> Iterator[str]:
    """Name of a ConfigMap that holds the module `harmful_model`."""
    name = f"{MODEL}-{os.getpid()}"
    source = Path(__file__).with_name("harmful_model.py").read_text(encoding="utf-8")
    api.core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": name}, "data": {"harmful_model.py": source}})
    yield name
    api.core.delete_namespaced_config_map(name, NAMESPACE)


def sequence_of(number: int) -> str:
    """A sequence of 50 letters; different numbers have different ones."""
    return "".join("ACDEFHIK"[number >> (3 * place) & 7] for place in range(4)) + "LMNPQRSTVW" * 4 + "ACDEFH"


def store_object(bucket: Bucket, sequences: Sequence[str]) -> str:
    """Put a FASTA object; record n is called `<object>-<n>`. Returns its URI."""
    name = f"harm-{next(_objects)}"
    text = "".join(f">{name}-{number}\n{sequence}\n" for number, sequence in enumerate(sequences))
    S3Store(bucket.name, endpoint_url=bucket.server.endpoint_url).put_create(f"in/{name}.fasta", text.encode())
    return f"s3://{bucket.name}/in/{name}.fasta"


def with_word(word: str, *, at: int) -> list[str]:
    """FEW_RECORDS sequences, of which one says `word`."""
    return [sequence_of(number) + (word if number == at else "") for number in range(FEW_RECORDS)]


def apply_harmful(run: Run, uris: list[str], *, parameters: dict[str, Any] | None = None, **changes: Any) -> None:
    """Apply a run of the harmful model over `uris`, in containers whose memory is limited."""
    mount = {"name": "models", "mountPath": "/models"}
    resources = {"cpu": "1", "memory": MEMORY}
    template = worker_template(
        run.bucket.server.endpoint_url,
        environment={"PYTHONPATH": "/app:/models"},
        pod={"volumes": [{"name": "models", "configMap": {"name": f"{MODEL}-{os.getpid()}"}}]},
        # Equal, so that the kernel's choice of the process to kill is ours (oom_score_adj).
        resources={"requests": resources, "limits": resources},
        volumeMounts=[mount],
    )
    settings = {
        "model": {
            "name": "torch",
            "source": "harmful_model:build",
            "parameters": parameters or {},
            "maxTokensPerBatch": 1024,
        },
        "workers": {"count": 2, "template": template},
        "failurePolicy": {"backoff": {"replaceSeconds": 0, "retrySeconds": 0.1}},
    }
    for section, change in changes.items():
        settings.setdefault(section, {}).update(change)
    run.apply(uris=uris, **settings)


def made_for(watch: PodWatch, run: Run) -> set[str]:
    """Names of the pods that were made for a run."""
    names = {key.partition("/")[0] for key in watch.created()}
    return {name for name in names if name.startswith(f"{run.name}-")}


@pytest.mark.usefixtures("model_map")
def test_records_that_kill_are_quarantined_and_no_others(run: Run, api: Api, bucket: Bucket) -> None:
    """One ends the model process by a signal, one the whole container by its memory: exactly these two are left out."""
    segfault = store_object(bucket, with_word("SEGFAULT", at=17))
    glutton = store_object(bucket, with_word("GLUTTON", at=9))

    apply_harmful(run, [segfault, glutton])
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")
    quarantined = [item for manifest in run.manifests() for item in manifest["quarantined"]]

    assert status["phase"] == "Succeeded", status
    assert {(item["id"].rpartition("-")[2], item["class"]) for item in quarantined} == {
        ("17", "PoisonInput"),
        ("9", "OutOfMemory"),
    }
    assert status["restarts"]["byClass"] == {"OutOfMemory": 4}, status["lastFailures"]
    assert run.verified()["records"] == 2 * FEW_RECORDS - 2


@pytest.mark.parametrize("takes_container", [True, False], ids=["container", "process"])
@pytest.mark.usefixtures("model_map")
def test_a_batch_beyond_the_memory_limit_is_halved(
    run: Run, api: Api, bucket: Bucket, *, takes_container: bool
) -> None:
    """The kernel kills the container, or the model's process alone; a smaller budget fits, and stays with the shard."""
    uri = store_object(bucket, [sequence_of(number) for number in range(3 * FEW_RECORDS)])

    apply_harmful(run, [uri], parameters={"max_tokens": 700, "takes_container": takes_container})
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")
    (manifest,) = run.manifests()

    assert status["phase"] == "Succeeded", status
    # A kubelet may have the kernel kill all processes where one would do.
    killed = [{"OutOfMemory": 1}] if takes_container else [{}, {"OutOfMemory": 1}]
    assert status["restarts"]["byClass"] in killed, status["lastFailures"]
    assert status["quarantined"] == 0
    assert 256 <= manifest["hints"]["tokenBudget"] <= 512
    assert run.verified()["records"] == 3 * FEW_RECORDS


@pytest.mark.usefixtures("model_map")
def test_a_shard_that_needs_more_memory_gets_a_larger_worker(run: Run, api: Api, bucket: Bucket) -> None:
    """Smaller batches do not help, so the limit is doubled within what is allowed, and stays with the shard."""
    stout = store_object(bucket, with_word("STOUT", at=5))

    apply_harmful(run, [stout], failurePolicy={"maxMemory": "2Gi"}, workers={"count": 1})
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")
    (manifest,) = run.manifests()

    assert status["phase"] == "Succeeded", status
    assert status["restarts"]["byClass"] == {"OutOfMemory": 2}, status["lastFailures"]
    assert manifest["hints"]["memoryBytes"] == 2 * 900 * 2**20
    assert run.verified()["records"] == FEW_RECORDS


@pytest.mark.usefixtures("model_map")
def test_a_shard_that_takes_all_memory_fails_alone(run: Run, api: Api, bucket: Bucket) -> None:
    """Whatever the budget, its workers are killed: after its retries it is given up with advice; the others complete."""
    hoarder = store_object(bucket, with_word("HOARDER", at=0))
    others = [store_object(bucket, [sequence_of(number) for number in range(FEW_RECORDS)]) for _ in range(2)]

    apply_harmful(run, [hoarder, *others], failurePolicy={"maxFailedShards": 1})
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")
    failed = [manifest for manifest in run.manifests() if manifest["status"] == "failed"]

    assert status["phase"] == "Succeeded", status
    assert status["shards"] == {"total": 3, "complete": 2, "running": 0, "failed": 1}
    assert status["restarts"]["byClass"] == {"OutOfMemory": 4}
    assert [manifest["object"] for manifest in failed] == [hoarder]
    assert failed[0]["failure"]["class"] == "OutOfMemory"
    assert "give workers more memory" in failed[0]["failure"]["detail"]
    assert api.condition(run.name, "Degraded")["status"] == "True"


def test_a_crash_loop_opens_the_breaker_until_the_spec_is_mended(run: Run, api: Api, cluster: Cluster) -> None:
    """Three workers that end alike before they get anywhere, and no more; the mended spec starts at once.

    The logs of the three are kept, though their pods are gone.
    """
    endpoint = run.bucket.server.endpoint_url
    broken = worker_template(endpoint, command=["python", "-c", "raise SystemExit('cannot start, as said by a test')"])
    backoff = {"replaceSeconds": 0, "retrySeconds": 0.1}

    with PodWatch(cluster.kubeconfig).watching() as watch:
        run.apply(workers={"count": 1, "template": broken}, failurePolicy={"backoff": backoff})
        opened = api.wait_for_phase(run.name, "CircuitOpen", "Failed")
        condition = api.condition(run.name, "CircuitOpen")
        num_pods = len(made_for(watch, run))
    api.patch(
        run.name, {"workers": {"template": {"spec": {"containers": worker_template(endpoint)["spec"]["containers"]}}}}
    )
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert opened["phase"] == "CircuitOpen", opened
    assert num_pods == 3
    assert condition["status"] == "True"
    assert "the same end 3 times" in condition["message"]
    assert "cannot start, as said by a test" in condition["message"]
    assert status["phase"] == "Succeeded", status
    assert api.condition(run.name, "CircuitOpen")["status"] == "False"
    assert run.verified()["records"] == 200
    store = open_store(run.output)
    logs = [store.get(item.key).body for item in store.list(build_logs_prefix(1))]
    assert len([text for text in logs if b"cannot start, as said by a test" in text]) == 3


@contextmanager
def empty_registry() -> Iterator[str]:
    """A registry of images that has none; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_greeting = self.path.rstrip("/") == "/v2"
            body = b"{}" if is_greeting else b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
            self.send_response(200 if is_greeting else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  (http.server's name)

        def log_message(self, *_arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def missing_image(endpoint: str) -> Iterator[dict[str, Any]]:
    """A template whose image no registry has."""
    with empty_registry() as address:
        yield worker_template(endpoint, image=f"{address}/no/such:1", imagePullPolicy="IfNotPresent")


@contextmanager
def missing_secret(endpoint: str) -> Iterator[dict[str, Any]]:
    """A template that reads a Secret which nobody has made."""
    yield worker_template(endpoint, envFrom=[{"secretRef": {"name": "no-such-secret"}}])


@contextmanager
def denied_bucket(endpoint: str) -> Iterator[dict[str, Any]]:
    """A template whose credentials the store refuses, whereas it takes the controller's."""
    with FaultProxy(int(endpoint.rpartition(":")[2])) as proxy:
        for method in ("GET", "HEAD", "PUT", "POST"):
            proxy.inject(Fault.DENIED, method=method, times=1 << 30)
        yield worker_template(proxy.endpoint_url)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (missing_image, ["no/such:1", "not found", "correct the image's name"]),
        (missing_secret, ["no-such-secret", "create the Secret"]),
        (denied_bucket, ["AccessDenied", "check the credentials and the buckets"]),
    ],
    ids=["image", "Secret", "bucket"],
)
def test_what_only_a_person_can_mend_stops_the_run(
    run: Run, api: Api, cluster: Cluster, broken: Any, said: list[str]
) -> None:
    """The breaker opens at once, on at most a pod for each worker, and says what to mend."""
    with PodWatch(cluster.kubeconfig).watching() as watch, broken(run.bucket.server.endpoint_url) as template:
        run.apply(workers={"count": 2, "template": template})
        status = api.wait_for_phase(run.name, "CircuitOpen", "Failed", "Succeeded")
        message = api.condition(run.name, "CircuitOpen")["message"]
        num_pods = len(made_for(watch, run))

    assert status["phase"] == "CircuitOpen", status
    assert {note["class"] for note in status["lastFailures"]} == {"Configuration"}
    assert [text for text in said if text not in message] == [], message
    assert num_pods <= 2


def test_a_worker_that_ends_with_0_when_asked_to_leave(run: Run, api: Api) -> None:
    """Its pod shows as Succeeded in mid-run. That is taken neither for success nor for a failure, and its work goes on."""
    wrapped = "trap 'kill -TERM $worker; wait $worker; exit 0' TERM; python -m worker & worker=$!; wait $worker"
    template = worker_template(run.bucket.server.endpoint_url, command=["sh", "-c", wrapped])

    run.apply(copies=2, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN, workers={"count": 1, "template": template})
    run.wait_for_records(1)
    evict(api, api.running_pods(run.name)[0].metadata.name)
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert status["phase"] == "Succeeded", status
    assert status["restarts"] == {"total": 1, "counted": 0, "byClass": {"SpotEviction": 1}}
    assert run.verified()["records"] == 400


def test_a_node_that_refuses_gpu_pods_is_avoided_then_tried_again(run: Run, api: Api, cluster: Cluster) -> None:
    """It offered a GPU that it did not have: new workers keep away for a while, however much it offers; then one probes."""
    bad, good = cluster.node_names()[:2]
    cluster.set_gpus(bad, 0)
    cluster.set_gpus(good, 0)
    try:
        run.apply(
            copies=2,
            model=SLOW_MODEL,
            checkpoint=CHECKPOINT_OFTEN,
            workers={"count": 1, "gpusPerWorker": 1},
            failurePolicy={
                "backoff": {"replaceSeconds": 0, "rejectedSeconds": 0},
                "nodeBreaker": {"score": 1, "avoidSeconds": 40},
            },
        )
        # As if the scheduler had believed in a GPU that was just lost: the kubelet is asked to run the pod without one.
        first = wait_for(lambda: api.pods(run.name), "the first pod")[0].metadata.name
        bind(api, first, bad)
        wait_for(lambda: run.status().get("lastFailures"), "the refusal", why=run.status)
        refusal = run.status()["lastFailures"][0]
        cluster.set_gpus(bad, 1)
        waiting = wait_for(lambda: [pod for pod in api.pods(run.name) if pod.metadata.name != first], "another pod")[0]
        degraded = wait_for(lambda: api.condition(run.name, "Degraded"), "the condition")
        wait_for(lambda: unschedulable(api, waiting.metadata.name), "the scheduler to find no node for it")
        probe = wait_for(
            lambda: [pod for pod in api.running_pods(run.name) if pod.spec.node_name == bad],
            "a worker to try the node again",
            patience_s=120,
            why=run.status,
        )
        status = api.wait_for_phase(run.name, "Succeeded", "Failed")
    finally:
        cluster.set_gpus(bad, 0)

    assert refusal["class"] == "NodeRejected"
    assert refusal["node"] == bad
    assert bad in degraded["message"]
    assert len(probe) == 1
    assert status["phase"] == "Succeeded", status
    assert status["restarts"]["counted"] == 0
    assert run.verified()["records"] == 400


def bind(api: Api, pod: str, node: str) -> None:
    """Place a pod, as the scheduler does."""
    body = {
        "metadata": {"name": pod},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    # The client cannot read the answer, a Status, as the Binding that it expects.
    api.core.create_namespaced_binding(NAMESPACE, body, _preload_content=False)


def unschedulable(api: Api, pod: str) -> str:
    """The scheduler's message, empty while it has none."""
    conditions = api.core.read_namespaced_pod(pod, NAMESPACE).status.conditions or []
    return next((item.message for item in conditions if item.type == "PodScheduled" and item.status == "False"), "")
