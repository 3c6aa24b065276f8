"""The life of a run on a real API server and kubelet, from apply to its end."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Run
from tests.e2e.operator import CHECKPOINT_OFTEN, SLOW_MODEL, Api, Controller, wait_for

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


def test_suspend_drains_and_resume_goes_on(run: Run, api: Api, controller: Controller) -> None:
    """Suspended: pods drain, what they finished is committed, nothing is charged. Resumed: the run ends complete."""
    run.apply(copies=2, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN)
    run.wait_for_records(1)

    api.patch(run.name, {"suspend": True})
    api.wait_for_phase(run.name, "Suspended")
    wait_for(lambda: not api.pods(run.name), "the pods to drain")
    suspended = run.status()
    api.patch(run.name, {"suspend": False})
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert suspended["progress"]["records"] < 400
    assert status["phase"] == "Succeeded", status
    assert status["restarts"]["counted"] == 0
    assert run.verified()["records"] == 400


def test_scale_down_and_up(run: Run, api: Api, controller: Controller) -> None:
    """4 -> 1 -> 4 workers while it runs: surplus pods drain, new ones come, nothing is lost."""
    run.apply(copies=4, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN, workers={"count": 4})
    wait_for(lambda: len(api.running_pods(run.name)) == 4, "four pods to run")

    api.patch(run.name, {"workers": {"count": 1}})
    wait_for(lambda: len(api.pods(run.name)) == 1, "three pods to drain")
    api.patch(run.name, {"workers": {"count": 4}})
    wait_for(lambda: len(api.running_pods(run.name)) == 4, "four pods to run again")
    status = api.wait_for_phase(run.name, "Succeeded", "Failed")

    assert status["phase"] == "Succeeded", status
    assert status["restarts"]["counted"] == 0
    assert run.verified()["records"] == 800
