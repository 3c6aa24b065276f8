"""The life of a run on a real API server and kubelet, from apply to its end."""

from __future__ import annotations

import pytest
from kubernetes.client.exceptions import ApiException

from tests.e2e.conftest import Run
from tests.e2e.operator import (
    CHECKPOINT_OFTEN,
    NAMESPACE,
    SLOW_MODEL,
    Api,
    ControllerPod,
    wait_for,
    worker_template,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_apply_leads_to_success(run: Run, api: Api) -> None:
    """2,000 real proteins through four workers on two nodes; status, conditions and events say so."""
    run.apply(copies=10, workers={"count": 4})

    status = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert status["phase"] == "Succeeded", status
    assert status["progress"]["records"] == 2000
    assert status["progress"]["percent"] == "100.0"
    assert status["shards"]["complete"] == status["shards"]["total"]
    assert status["restarts"]["counted"] == 0
    assert api.condition(run.name, "Complete")["status"] == "True"
    assert api.condition(run.name, "Accepted")["status"] == "True"
    wait_for(lambda: not api.pods(run.name), "the pods to be removed")
    reasons = {
        event.reason
        for event in api.core.list_namespaced_event("default").items
        if event.involved_object.name == run.name
    }
    assert "Succeeded" in reasons
    assert run.verified()["records"] == 2000


def test_a_bad_spec_is_not_accepted(run: Run, api: Api) -> None:
    """What the API server lets pass, the controller refuses with every mistake in one message, and no pod starts."""
    run.apply(checkpoint={"everySeconds": 100, "emergencySeconds": 50})

    wait_for(lambda: api.condition(run.name, "Accepted").get("status") == "False", "the spec to be refused")

    assert "emergencySeconds" in api.condition(run.name, "Accepted")["message"]
    assert api.pods(run.name) == []


def test_suspend_drains_and_resume_goes_on(run: Run, api: Api, controller: ControllerPod) -> None:
    """Suspended: pods drain, what they finished is committed, nothing is charged. Resumed: the run ends complete."""
    run.apply(copies=4, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN)
    run.wait_for_records(1)

    api.patch(run.name, {"suspend": True})
    api.wait_for_phase(run.name, "Suspended")
    wait_for(lambda: not api.pods(run.name), "the pods to drain")
    suspended = run.status()
    api.patch(run.name, {"suspend": False})
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert suspended["progress"]["records"] < 800
    assert status["phase"] == "Succeeded", status
    assert status["restarts"]["counted"] == 0
    assert run.verified()["records"] == 800


def test_scale_down_and_up(run: Run, api: Api, controller: ControllerPod) -> None:
    """4 -> 1 -> 4 workers while it runs: surplus pods drain, new ones come, nothing is lost."""
    run.apply(copies=6, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN, workers={"count": 4})
    wait_for(lambda: len(api.running_pods(run.name)) == 4, "four pods to run")

    api.patch(run.name, {"workers": {"count": 1}})
    wait_for(lambda: len(api.pods(run.name)) == 1, "three pods to drain")
    api.patch(run.name, {"workers": {"count": 4}})
    wait_for(lambda: len(api.running_pods(run.name)) == 4, "four pods to run again")
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert status["phase"] == "Succeeded", status
    assert status["restarts"]["counted"] == 0
    assert run.verified()["records"] == 1200


def test_a_deleted_run_drains_and_resumes_when_applied_again(run: Run, api: Api) -> None:
    """Deletion drains the pods and keeps the output; the same run, applied again, goes on from there."""
    run.apply(copies=4, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN)
    run.wait_for_records(1)

    api.delete(run.name)
    wait_for(lambda: api.run(run.name) is None, "the run to go")
    kept = run.verified()["records"]
    run.apply(copies=4, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN)
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert 0 < kept < 800
    assert status["phase"] == "Succeeded", status
    assert run.verified()["records"] == 800


def test_a_finished_run_goes_after_its_time_and_its_output_stays(run: Run, api: Api) -> None:
    """The field ttlSecondsAfterFinished deletes the resource, never what it made."""
    run.apply(ttlSecondsAfterFinished=3)
    api.wait_for_phase(run.name, "Succeeded", "Failed")

    wait_for(lambda: api.run(run.name) is None, "the run to be deleted", patience_s=60)

    assert run.verified()["records"] == 200


def test_a_deadline_fails_the_run_and_keeps_what_is_done(run: Run, api: Api) -> None:
    """Pods drain; a longer deadline lets the run go on from there."""
    run.apply(copies=6, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN, activeDeadlineSeconds=900)
    run.wait_for_records(1)

    api.patch(run.name, {"activeDeadlineSeconds": 5})  # that long it has run already
    failed = api.wait_for_phase(run.name, "Failed")
    wait_for(lambda: not api.pods(run.name), "the pods to drain")
    api.patch(run.name, {"activeDeadlineSeconds": 900})
    status = api.wait_for_phase(run.name, "Succeeded")

    assert next(item for item in failed["conditions"] if item["type"] == "Failed")["reason"] == "DeadlineExceeded"
    assert failed["progress"]["records"] < 1200
    assert status["restarts"]["counted"] == 0
    assert run.verified()["records"] == 1200


def test_restart_opens_one_new_generation(run: Run, api: Api, controller: ControllerPod) -> None:
    """Once for the change of the spec, however often the controller starts."""
    run.apply()
    first = api.wait_for_phase(run.name, "Succeeded", "Failed")

    api.patch(run.name, {"resume": "Restart"})
    wait_for(lambda: run.status().get("phase") not in {"Succeeded", None}, "the run to begin anew")
    controller.kill()
    second = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert first["progress"]["records"] == second["progress"]["records"] == 200
    assert run.verified()["generation"] == 2


def test_a_second_run_on_an_output_is_refused_until_the_first_has_ended(run: Run, api: Api) -> None:
    """It says who works there, and starts no pod; when that run is gone it goes on with what is there."""
    run.apply(copies=4, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN)
    run.wait_for_records(1)
    second = Run(f"{run.name}-too", run.output, api, run.bucket)
    second.apply(copies=4, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN)

    wait_for(lambda: api.condition(second.name, "Accepted").get("status") == "False", "the second run to be refused")
    refusal, pods = api.condition(second.name, "Accepted"), api.pods(second.name)
    api.delete(run.name)
    status = api.wait_for_phase(second.name, "Succeeded", "Failed")
    api.delete(second.name)
    wait_for(lambda: api.run(second.name) is None, "the second run to go")

    assert refusal["reason"] == "OutputInUse"
    assert run.name in refusal["message"]
    assert pods == []
    assert status["phase"] == "Succeeded", status
    assert run.verified()["records"] == 800


def test_another_input_is_refused(run: Run, api: Api) -> None:
    """Identity does not change: an API server that checks no rules leaves it to the controller, which touches nothing."""
    run.apply()
    api.wait_for_phase(run.name, "Succeeded", "Failed")

    try:
        api.patch(run.name, {"input": {"uris": run.bucket.proteins(2)}})
    except ApiException as error:
        assert error.status == 422  # noqa: PT017  (servers from 1.25 on refuse it themselves)
    else:
        wait_for(lambda: api.condition(run.name, "Accepted").get("status") == "False", "the change to be refused")

    assert run.verified()["records"] == 200


def test_a_queue_admits_its_pods_and_takes_them_back(run: Run, api: Api) -> None:
    """As Kueue does with plain pods: its label passes on, a gate is waited for, what it ends is replaced and not charged."""
    gate = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
    template = worker_template(run.bucket.server.endpoint_url, pod=gate)
    labels = {"kueue.x-k8s.io/queue-name": "research", "team": "mine"}

    run.apply(
        copies=2,
        labels=labels,
        model=SLOW_MODEL,
        checkpoint=CHECKPOINT_OFTEN,
        workers={"count": 1, "template": template},
    )
    first = wait_for(lambda: api.pods(run.name), "a pod")[0]
    admit(api, first.metadata.name)
    run.wait_for_records(1)
    name = wait_for(lambda: api.running_pods(run.name), "a running pod")[0].metadata.name
    target = {"type": "TerminationTarget", "status": "True", "reason": "WorkloadEvictedDueToPreempted"}
    api.core.patch_namespaced_pod_status(name, NAMESPACE, {"status": {"conditions": [target]}})
    api.core.delete_namespaced_pod(name, NAMESPACE)
    second = wait_for(lambda: [pod for pod in api.pods(run.name) if pod.metadata.name != name], "its replacement")[0]
    admit(api, second.metadata.name)
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert first.metadata.labels["kueue.x-k8s.io/queue-name"] == "research"
    assert "team" not in first.metadata.labels
    assert status["phase"] == "Succeeded", status
    assert status["restarts"]["counted"] == 0
    assert status["lastFailures"] == [], "that it was ended on purpose is no failure"
    assert run.verified()["records"] == 400


def admit(api: Api, name: str) -> None:
    """Remove the gates of a pod, which waits until then. Servers before 1.26 have dropped them."""
    pod = api.core.read_namespaced_pod(name, NAMESPACE)
    if pod.spec.scheduling_gates:
        assert pod.spec.node_name is None
        api.core.patch_namespaced_pod(name, NAMESPACE, {"spec": {"schedulingGates": None}})
