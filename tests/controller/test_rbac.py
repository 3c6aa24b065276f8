"""The chart: the rights that the controller's requests need, no more and no less."""

from __future__ import annotations

from tests.chart import rendering

USED = {
    ("inferencerun.dev", "inferenceruns"): {"get", "list", "watch", "delete"},
    ("inferencerun.dev", "inferenceruns/status"): {"patch"},
    ("inferencerun.dev", "inferenceruns/finalizers"): {"update"},
    ("", "pods"): {"get", "list", "watch", "create", "patch", "delete"},
    ("", "pods/log"): {"get"},
    ("", "nodes"): {"get", "list", "watch"},
    ("", "events"): {"create"},
    ("coordination.k8s.io", "leases"): {"get", "create", "update"},
}
"""What controller/run_resource.py, worker_pods.py, observation.py, runs.py, events.py, leader.py and kopf ask for."""


def test_the_rights_are_those_that_are_used() -> None:
    """Wildcards, and rights that nothing uses, have no place in it; the end-to-end tests show that nothing lacks."""
    given: dict[tuple[str, str], set[str]] = {}
    for found in rendering.objects({"rbac": {"aggregate": False}}):
        for rule in found.get("rules") or []:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    given.setdefault((group, resource), set()).update(rule["verbs"])

    assert given == USED
