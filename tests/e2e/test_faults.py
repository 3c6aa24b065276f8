"""Runs that are harmed in every way that a cluster knows, and end complete, with nothing charged."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from tests.cluster.cluster import Cluster
from tests.e2e.conftest import Bucket, Run
from tests.e2e.operator import (
    CHECKPOINT_OFTEN,
    NAMESPACE,
    SLOW_MODEL,
    Api,
    Controller,
    PodWatch,
    end,
    wait_for,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

KILLS = 20
RESPONSE_S = 2.0
"""From the API showing the end of a pod to its replacement."""


def slow(run: Run, *, copies: int, count: int = 2) -> None:
    """Apply a run of `copies` * 200 records that takes minutes."""
    run.apply(copies=copies, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN, workers={"count": count})


def ended_well(run: Run, api: Api, *, records: int) -> dict[str, Any]:
    """Wait for success; nothing was charged, and the output verifies."""
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")
    assert status["phase"] == "Succeeded", status
    assert status["restarts"]["counted"] == 0, status
    assert run.verified()["records"] == records
    return status


def evict(api: Api, name: str) -> None:
    """The Eviction API, in the version that the server has."""
    for version in ("v1", "v1beta1"):
        body = {
            "apiVersion": f"policy/{version}",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": NAMESPACE},
        }
        try:
            api.core.create_namespaced_pod_eviction(name, NAMESPACE, body)
        except ApiException as error:
            if version == "v1beta1" or error.status not in {400, 404}:
                raise
        else:
            return


def test_a_controller_that_is_killed_at_random_moments(
    run: Run, api: Api, cluster: Cluster, controller: Controller
) -> None:
    """Twenty SIGKILLs: never a pod too many, no restart counted that was none, every record once."""
    chance = random.Random(20)
    with PodWatch(cluster.kubeconfig).watching() as watch:
        slow(run, copies=6)
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.3, 4.0))
            controller.kill()
            controller.start()
        ended_well(run, api, records=1200)
    events = [(at_s, 1) for at_s in watch.created().values()] + [(at_s, -1) for at_s in watch.ended().values()]
    living = peak = 0
    for _, change in sorted(events):
        living += change
        peak = max(peak, living)

    assert peak <= 2
    assert run.status()["restarts"]["total"] == 0


def test_two_controllers_at_once(run: Run, api: Api, cluster: Cluster, controller: Controller, tmp_path: Any) -> None:
    """Neither knows of the other, as after a pause of the leader: no pod too many, and a lost pod is counted once."""
    environment = {
        **controller.environment,
        "KUBECONFIG": str(cluster.kubeconfig),  # the chart lets a controller have its own Lease only
        "INFERENCERUN_CONTROLLER_LEASE_NAME": "another",
        "INFERENCERUN_CONTROLLER_IDENTITY": "another",
    }
    other = Controller(environment, tmp_path / "other.log")
    other.start()
    try:
        slow(run, copies=2)
        run.wait_for_records(1)
        evict(api, api.running_pods(run.name)[0].metadata.name)
        status = ended_well(run, api, records=400)
    finally:
        assert other.process is not None
        end(other.process)

    assert status["restarts"]["byClass"] == {"SpotEviction": 1}


def test_a_standby_takes_over(run: Run, api: Api, controller: Controller, tmp_path: Any) -> None:
    """Of two controllers one leads; when it is killed the other goes on within the Lease's time."""
    wait_for(lambda: _says(controller, "leading"), "the first to lead")
    environment = {**controller.environment, "INFERENCERUN_CONTROLLER_IDENTITY": "standby"}
    standby = Controller(environment, tmp_path / "standby.log")
    standby.start()
    try:
        wait_for(lambda: _says(standby, "probes"), "the second to be up")
        run.apply()
        wait_for(lambda: api.pods(run.name), "a pod")
        assert not _says(standby, "leading")
        controller.kill()
        killed_s = time.monotonic()
        wait_for(lambda: _says(standby, "leading"), "the second to lead")
        took_s = time.monotonic() - killed_s
        status = api.wait_for_phase(run.name, "Succeeded", "Failed")
    finally:
        assert standby.process is not None
        end(standby.process)

    assert took_s < 10  # the tests' Lease lasts 4 s
    assert status["phase"] == "Succeeded"
    assert run.verified()["records"] == 200


def _says(controller: Controller, message: str) -> bool:
    return any(line["message"] == message for line in controller.lines())


def test_pods_that_are_evicted_or_deleted(
    run: Run, api: Api, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is replaced within two seconds of its end, and nothing is lost or charged."""
    with PodWatch(cluster.kubeconfig).watching() as watch:
        slow(run, copies=12)
        harmed = 0
        for harm in (evict, lambda api, name: api.core.delete_namespaced_pod(name, NAMESPACE)) * 3:
            run.wait_for_records(1 + (run.status().get("progress") or {}).get("records", 0))
            pods = wait_for(lambda: api.running_pods(run.name), "a pod to run")
            harm(api, pods[harmed % len(pods)].metadata.name)
            harmed += 1
            wait_for(lambda: len(api.running_pods(run.name)) == 2, "its replacement to run")
        status = ended_well(run, api, records=2400)
    waits = sorted(_waits(watch))
    with capsys.disabled():
        print(f"\nfailure -> replacement: {', '.join(f'{wait_s:.2f}' for wait_s in waits)} s")  # noqa: T201

    assert status["restarts"]["total"] == harmed
    assert len(waits) >= harmed
    assert waits[-1] <= RESPONSE_S


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


def test_an_api_server_that_is_away(run: Run, api: Api, cluster: Cluster, controller: Controller) -> None:
    """For 90 s: workers go on, the controller waits, and the run ends without anybody's help."""
    slow(run, copies=12)
    run.wait_for_records(1)

    cluster.stop_apiserver()
    time.sleep(90)
    assert controller.is_running
    cluster.start_apiserver()

    ended_well(run, api, records=2400)
    assert controller.is_running


def test_a_node_that_is_killed(run: Run, api: Api, cluster: Cluster) -> None:
    """Kubelet, containerd and all its processes at once: its pods are replaced elsewhere, and nobody pays."""
    name = cluster.add_node()
    try:
        slow(run, copies=12, count=4)
        wait_for(
            lambda: any(pod.spec.node_name == name for pod in api.running_pods(run.name)), f"a pod to run on {name}"
        )
        run.wait_for_records(10)

        cluster.kill_node(name)
        status = ended_well(run, api, records=2400)
    finally:
        cluster.remove_node(name)

    assert status["restarts"]["byClass"].get("NodeLost", 0) >= 1


def test_a_pod_that_is_cut_off_and_works_on(run: Run, api: Api, cluster: Cluster, bucket: Bucket) -> None:
    """Its kubelet is silent, so it is given up and replaced; it goes on writing, and is fenced by the epoch."""
    name = cluster.add_node()
    try:
        slow(run, copies=12, count=4)
        wait_for(
            lambda: any(pod.spec.node_name == name for pod in api.running_pods(run.name)), f"a pod to run on {name}"
        )
        run.wait_for_records(10)

        cluster.pause_kubelet(name)
        ended_well(run, api, records=2400)
    finally:
        cluster.resume_kubelet(name)
        cluster.remove_node(name)
