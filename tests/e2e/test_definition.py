"""The resource's definition and the worker's pod before a real API server: taken, and read as the tests without one say.

`tests/chart` tests the CRD with a model of the API server (`tests.chart.stored`). Here the server itself answers the same
questions, by dry runs that store nothing.
"""

from __future__ import annotations

from typing import Any

import kubernetes.client
import pytest
from kubernetes.client import ApiException

from controller.api import Provider
from controller.pod_template import build_pod
from tests import make
from tests.chart import rendering
from tests.chart.stored import broken_rules, problems, stored
from tests.chart.test_crd import LEAVES, PROBES, walk, with_field
from tests.chart.test_rules import BEGUN, CHANGES, WRONG
from tests.e2e.operator import NAMESPACE, RUNS, Api

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SCHEMA = rendering.schema()
NULLABLE = {path for path, node in walk(SCHEMA["properties"]["spec"], "spec") if node.get("nullable")}
NAME = "inferenceruns.inferencerun.dev"


@pytest.fixture(scope="module")
def has_rules(api: Api) -> bool:
    """Whether this server knows CEL rules."""
    version = kubernetes.client.VersionApi(api.core.api_client).get_code()
    return (int(version.major), int(version.minor.rstrip("+"))) >= (1, 25)


def refusal(call: Any, *arguments: Any) -> str:
    """Why the server refuses a request (422 only); empty when it does not."""
    try:
        call(*arguments, dry_run="All")
    except ApiException as error:
        if error.status != 422:
            raise
        return str(error.body)
    return ""


def test_the_server_takes_the_definition(api: Api) -> None:
    """It is established, structural, and has short name, scale and columns."""
    found = api.extensions.read_custom_resource_definition(NAME)
    conditions = {item.type: item.status for item in found.status.conditions}

    assert conditions["Established"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert found.status.accepted_names.short_names == ["irun"]


def test_the_server_takes_and_refuses_what_the_model_does(api: Api, has_rules: bool) -> None:  # noqa: FBT001  (a fixture)
    """For each field and each probe: the same verdict, and the same resource would be stored.

    But for the empty text in a field that may be null: Kubernetes takes it for null whatever the type, and the controller
    refuses it.
    """
    differences = []
    for path in LEAVES:
        for probe in PROBES:
            if probe == "" and path in NULLABLE:
                continue
            resource = with_field(path, probe)
            is_taken = not problems(resource, SCHEMA) and not (has_rules and broken_rules(resource, SCHEMA))
            try:
                kept = api.custom.create_namespaced_custom_object(*RUNS, resource, dry_run="All")
            except ApiException as error:
                found: Any = "refused" if error.status == 422 else error
            else:
                found = kept["spec"]
            if found != (stored(resource, SCHEMA)["spec"] if is_taken else "refused"):
                differences.append((path, repr(probe)[:40], is_taken, str(found)[:200]))

    assert differences == []


def test_the_server_keeps_the_rules(api: Api, has_rules: bool) -> None:  # noqa: FBT001  (a fixture)
    """Where it knows rules, identity cannot be changed, and what a rule refuses is refused with its words."""
    if not has_rules:
        definition = api.extensions.read_custom_resource_definition(NAME).to_dict()
        assert "x_kubernetes_validations" not in str(definition) or "'rule':" not in str(definition)
        return
    for changes in WRONG:
        ((_, message),) = broken_rules(make.resource(changes), SCHEMA)
        assert message in refusal(api.custom.create_namespaced_custom_object, *RUNS, make.resource(changes))
    for old, new, message in CHANGES:
        api.apply(make.resource(old, name="rules"))
        try:
            api.custom.patch_namespaced_custom_object_status(*RUNS, "rules", {"status": BEGUN})
            answer = refusal(
                api.custom.patch_namespaced_custom_object, *RUNS, "rules", make.resource(new, name="rules")
            )
        finally:
            api.delete("rules")
        assert (message or "") in answer
        assert bool(answer) == (message is not None)


TEMPLATES: tuple[dict[str, Any], ...] = (
    {},
    {"metadata": {"labels": {"team": "a"}}, "spec": {"terminationGracePeriodSeconds": 300, "nodeSelector": {"a": "b"}}},
    {
        "spec": {
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "operator": "Exists"}],
            "volumes": [{"name": "cache", "hostPath": {"path": "/mnt/weights"}}],
            "containers": [
                {
                    "name": "worker",
                    "resources": {"limits": {"memory": "8Gi"}},
                    "env": [{"name": "HOME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}],
                },
                {"name": "sidecar", "image": "s:1"},
            ],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
                    }
                }
            },
        }
    },
)


@pytest.mark.parametrize("provider", Provider)
def test_the_server_takes_the_pods(api: Api, provider: Provider) -> None:
    """Pods of all kinds are valid, with templates and with nodes to avoid, and keep what was written."""
    for prefer in ("spot", "onDemand"):
        for template in TEMPLATES:
            workers = {"capacity": {"provider": provider, "prefer": prefer}, "template": template}
            pod = build_pod(
                make.run({"workers": workers}),
                name="run-0-0",
                namespace=NAMESPACE,
                slot=0,
                attempt=0,
                resource_uid="00000000-0000-0000-0000-000000000000",
                generation=1,
                settings_json="{}",
                image="worker:1",
                avoid_nodes=("node-a", "node-b"),
                run_labels={"kueue.x-k8s.io/queue-name": "q"},
            )

            kept = api.core.create_namespaced_pod(NAMESPACE, pod, dry_run="All")

            written = pod["spec"]
            assert len(kept.spec.containers) == len(written["containers"])
            assert kept.spec.termination_grace_period_seconds == written["terminationGracePeriodSeconds"]
            assert {item.name for item in kept.spec.volumes} >= {"tmp", "cache", "shm"}
