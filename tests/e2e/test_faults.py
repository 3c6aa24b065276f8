"""Runs that are harmed in every way that a cluster knows, and end complete, with nothing charged."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.names import ExitCode
from tests.cluster.cluster import Cluster
from tests.e2e.conftest import Bucket, Run
from tests.e2e.operator import (
    CHECKPOINT_OFTEN,
    NAMESPACE,
    SLOW_MODEL,
    Api,
    ControllerPod,
    ControllerProcess,
    PodWatch,
    controller_environment,
    evict,
    wait_for,
    worker_template,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

KILLS = 20
EVICTIONS = 20
RESPONSE_S = 2.0
"""From the API showing the end of a pod to its replacement."""


def slow(run: Run, *, copies: int, count: int = 2, near: str | None = None, cpu: str | None = None) -> None:
    """Apply a run of `copies` * 200 records, some 30 of which are done in a second.

    Args:
        run: it.
        copies: of 200 records.
        count: of workers.
        near: node where they run if it takes pods.
        cpu: what each worker may take; 400m makes it ten records a second, for harm that takes a minute to be felt.
    """
    limits = {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": cpu}}} if cpu else {}
    pod = {"affinity": near_to(near)} if near else None
    workers = {"count": count, "template": worker_template(run.bucket.server.endpoint_url, pod=pod, **limits)}
    run.apply(copies=copies, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN, workers=workers)


def near_to(node: str) -> dict[str, Any]:
    """A preference for one node."""
    here = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": here}]}}


def wait_for_all_on(api: Api, run: Run, node: str, *, count: int) -> list[Any]:
    """The run's pods once `count` of them run on `node`."""

    def found() -> list[Any]:
        pods = [pod for pod in api.running_pods(run.name) if pod.spec.node_name == node]
        return pods if len(pods) == count else []

    pods: list[Any] = wait_for(found, f"{count} pods to run on {node}", why=lambda: api.pods(run.name))
    return pods


def ended_well(run: Run, api: Api, *, records: int) -> dict[str, Any]:
    """Wait for success; nothing was charged, and the output verifies."""
    status = api.wait_for_phase(run.name, "Succeeded", "Failed", patience_s=480)
    assert status["phase"] == "Succeeded", status
    assert status["restarts"]["counted"] == 0, status
    assert run.verified()["records"] == records
    return status


def test_a_controller_that_is_killed_at_random_moments(
    run: Run, api: Api, cluster: Cluster, controller: ControllerPod
) -> None:
    """Twenty SIGKILLs: never a pod too many, no restart counted that was none, every record once."""
    chance = random.Random(20)
    with PodWatch(cluster.kubeconfig).watching() as watch:
        slow(run, copies=12, cpu="400m")
        for _ in range(KILLS):
            # Its successor needs some 3 s to start, and 4 s until the Lease of the dead is over.
            time.sleep(chance.uniform(0.3, 10.0))
            controller.kill()
        ended_well(run, api, records=2400)
    events = [(at_s, 1) for at_s in watch.created().values()] + [(at_s, -1) for at_s in watch.ended().values()]
    living = peak = 0
    for _, change in sorted(events):
        living += change
        peak = max(peak, living)

    assert peak <= 2
    assert run.status()["restarts"]["total"] == 0


def test_a_controller_that_is_killed_is_started_again_by_its_kubelet(
    run: Run, api: Api, cluster: Cluster, controller: ControllerPod
) -> None:
    """Its process alone dies: the same pod goes on with the run."""
    before = controller.instances()
    slow(run, copies=2)
    run.wait_for_records(1)

    controller.crash()
    ended_well(run, api, records=400)

    assert {uid: count - before[uid] for uid, count in controller.instances().items()} == dict.fromkeys(before, 1)


def test_two_controllers_at_once(
    run: Run, api: Api, cluster: Cluster, controller: ControllerPod, bucket: Bucket, tmp_path: Path
) -> None:
    """Neither knows of the other, as after a pause of the leader: no pod too many, and a lost pod is counted once."""
    # The chart gives the right to one Lease only, so the rival logs in as the administrator.
    environment = controller_environment(
        cluster.kubeconfig, bucket.server.environment, lease_name="another", identity="another"
    )
    other = ControllerProcess(environment, tmp_path / "other.log")
    with other.running():
        slow(run, copies=4)
        run.wait_for_records(1)
        wait_for(lambda: _says(other, "leading"), "the other to lead")
        evict(api, api.running_pods(run.name)[0].metadata.name)
        status = ended_well(run, api, records=800)
        assert other.is_running

    assert controller.is_running
    assert status["restarts"]["byClass"] == {"SpotEviction": 1}


@pytest.mark.usefixtures("no_controller")
def test_a_standby_takes_over(run: Run, api: Api, access: Path, bucket: Bucket, tmp_path: Path) -> None:
    """Of two controllers one leads; when it is killed the other goes on within the Lease's time."""
    first, standby = (
        ControllerProcess(
            controller_environment(access, bucket.server.environment, identity=name), tmp_path / f"{name}.log"
        )
        for name in ("first", "standby")
    )
    with first.running():
        wait_for(lambda: _says(first, "leading"), "the first to lead")
        with standby.running():
            wait_for(lambda: _says(standby, "probes"), "the second to be up")
            run.apply()
            wait_for(lambda: api.pods(run.name), "a pod")
            assert not _says(standby, "leading")
            first.kill()
            killed_s = time.monotonic()
            wait_for(lambda: _says(standby, "leading"), "the second to lead")
            took_s = time.monotonic() - killed_s
            status = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert took_s < 10  # the tests' Lease lasts 4 s
    assert status["phase"] == "Succeeded"
    assert run.verified()["records"] == 200


def _says(controller: ControllerProcess, message: str) -> bool:
    return any(line["message"] == message for line in controller.lines())


def test_pods_that_are_evicted_or_deleted(
    run: Run, api: Api, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty evictions and two deletions in a row: each pod is replaced within two seconds, nothing is lost or charged."""
    harms = [evict] * EVICTIONS + [lambda api, name: api.core.delete_namespaced_pod(name, NAMESPACE)] * 2
    with PodWatch(cluster.kubeconfig).watching() as watch:
        slow(run, copies=6, count=3)
        harmed: set[str] = set()
        for harm in harms:
            pod = wait_for(lambda: next(iter(at_work(api, run) - harmed), None), "a worker that has claimed a shard")
            harm(api, pod)
            harmed.add(pod)
        status = ended_well(run, api, records=1200)
    waits = sorted(_waits(watch))
    with capsys.disabled():
        print(f"\nfailure -> replacement: {', '.join(f'{wait_s:.2f}' for wait_s in waits)} s")  # noqa: T201

    # Whoever had just completed its shard was not interrupted: it is as good as done, and no restart.
    interrupted = harmed & {attempt["pod"] for manifest in run.manifests() for attempt in manifest["attempts"]}
    assert len(interrupted) > len(harms) / 2
    assert status["restarts"]["total"] == len(interrupted)
    assert status["restarts"]["byClass"].get("SpotEviction", 0) >= len(interrupted) - 2
    assert len(waits) >= len(harms) - 2  # the last ones may have had no successor: their work was taken over
    assert waits[-1] <= RESPONSE_S


def at_work(api: Api, run: Run) -> set[str]:
    """Names of the running pods whose worker holds a shard."""
    holders = {manifest["owner"]["pod"] for manifest in run.manifests() if manifest["owner"] is not None}
    return holders & {pod.metadata.name for pod in api.running_pods(run.name)}


def _waits(watch: PodWatch) -> list[float]:
    """Seconds from the end of a pod to the creation of the next one in its slot."""
    created = {key.rpartition("/")[0]: at_s for key, at_s in watch.created().items()}
    waits = []
    for key, ended_s in watch.ended().items():
        slot, _, attempt = key.rpartition("/")[0].rpartition("-")
        following = created.get(f"{slot}-{int(attempt) + 1}")
        if following is not None:
            waits.append(following - ended_s)
    return waits


def test_an_api_server_that_is_away(run: Run, api: Api, cluster: Cluster, controller: ControllerPod) -> None:
    """For 90 s: workers go on, the controller waits, and the run ends without anybody's help."""
    before = controller.instances()
    slow(run, copies=12, cpu="400m")
    run.wait_for_records(1)

    cluster.stop_apiserver()
    time.sleep(90)
    cluster.start_apiserver()

    ended_well(run, api, records=2400)
    assert controller.instances() == before


def test_a_store_that_is_down(run: Run, api: Api, bucket: Bucket, controller: ControllerPod) -> None:
    """For 60 s, to everybody: workers wait with what they have, and go on; none ends, nothing is lost or charged."""
    slow(run, copies=4)
    run.wait_for_records(1)
    before, instances = {pod.metadata.name for pod in api.pods(run.name)}, controller.instances()

    bucket.gate.shut()
    time.sleep(60)
    during = {pod.metadata.name for pod in api.running_pods(run.name)}
    bucket.gate.open()

    assert during == before
    status = ended_well(run, api, records=800)
    assert status["restarts"]["total"] == 0
    assert controller.instances() == instances


@pytest.fixture(scope="module")
def spare_nodes(cluster: Cluster) -> Iterator[list[str]]:
    """The spare nodes so far; removed after the tests of this module."""
    names: list[str] = []
    yield names
    for name in names:
        cluster.remove_node(name)


@pytest.fixture
def spare_node(cluster: Cluster, spare_nodes: list[str]) -> str:
    """A third node, that a test may harm; the one of the test before if it has come through."""
    if not spare_nodes or not cluster.is_node_ready(spare_nodes[-1]):
        spare_nodes.append(cluster.add_node())
    return spare_nodes[-1]


def test_a_node_that_is_drained(run: Run, api: Api, cluster: Cluster, spare_node: str) -> None:
    """Cordoned, then each of its pods evicted: they go on elsewhere, and nobody pays."""
    slow(run, copies=4, near=spare_node)
    pods = wait_for_all_on(api, run, spare_node, count=2)
    run.wait_for_records(10)

    cluster.cordon(spare_node)
    try:
        for pod in pods:
            evict(api, pod.metadata.name)
        status = ended_well(run, api, records=800)
    finally:
        cluster.cordon(spare_node, cordoned=False)

    assert status["restarts"]["byClass"] == {"SpotEviction": 2}


def test_a_pod_that_is_cut_off_and_works_on(run: Run, api: Api, cluster: Cluster, spare_node: str) -> None:
    """Its kubelet is silent, so it is given up and replaced; it goes on writing, and is fenced by the epoch."""
    slow(run, copies=12, near=spare_node, cpu="400m")
    pods = wait_for_all_on(api, run, spare_node, count=2)
    run.wait_for_records(10)

    cluster.pause_kubelet(spare_node)
    try:
        status = ended_well(run, api, records=2400)
        last_words = [cluster.pod_output(spare_node, pod.metadata.uid) for pod in pods]
    finally:
        cluster.resume_kubelet(spare_node)
        wait_for(lambda: cluster.is_node_ready(spare_node), f"{spare_node} to be back", patience_s=60)

    assert status["restarts"]["byClass"] == {"NodeLost": 2}
    assert all(f'"exit_code": {int(ExitCode.FENCED)}' in text for text in last_words), last_words


def test_a_node_that_is_killed(run: Run, api: Api, cluster: Cluster, spare_node: str) -> None:
    """Kubelet, containerd and all its processes at once: its pods are replaced elsewhere, and nobody pays."""
    slow(run, copies=4, near=spare_node)
    wait_for_all_on(api, run, spare_node, count=2)
    run.wait_for_records(10)

    cluster.kill_node(spare_node)
    status = ended_well(run, api, records=800)

    assert status["restarts"]["byClass"] == {"NodeLost": 2}
