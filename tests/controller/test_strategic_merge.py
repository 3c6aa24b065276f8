"""controller.strategic_merge: what meets what when a partial template is merged, and what a template may not say."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from controller.strategic_merge import merged, mistakes

BASE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1", "b": "2"}},
    "spec": {
        "priority": 1,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": [
            {"key": "lost", "effect": "NoExecute", "tolerationSeconds": 30},
            {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        ],
        "containers": [
            {
                "name": "worker",
                "image": "w:1",
                "args": ["a", "b"],
                "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}],
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}],
    },
}


def worker(changes: dict[str, Any]) -> dict[str, Any]:
    """The worker container after a merge of `changes` into it."""
    (container,) = merged(BASE, {"spec": {"containers": [{"name": "worker", **changes}]}})["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def test_mappings_merge_and_null_removes() -> None:
    """Fields beside those of the patch stay, at every depth; null takes one away."""
    found = merged(
        BASE,
        {
            "metadata": {"labels": {"b": "3", "c": "4"}},
            "spec": {"priority": None, "securityContext": {"runAsUser": 7, "seccompProfile": None}},
        },
    )

    assert found["metadata"]["labels"] == {"a": "1", "b": "3", "c": "4"}
    assert "priority" not in found["spec"]
    assert found["spec"]["securityContext"] == {"runAsNonRoot": True, "runAsUser": 7}


def test_null_of_what_is_not_there_is_nothing() -> None:
    """A template may remove what a later version no longer has; no null is left for the API server."""
    assert merged({"a": 1}, {"b": None, "c": {"d": None, "e": 1}}) == {"a": 1, "c": {"e": 1}}


def test_containers_meet_by_name() -> None:
    """The worker is changed field by field, and a sidecar comes after it."""
    found = merged(
        BASE,
        {"spec": {"containers": [{"name": "sidecar", "image": "s"}, {"name": "worker", "image": "w:2"}]}},
    )["spec"]["containers"]

    assert [item["name"] for item in found] == ["worker", "sidecar"]
    assert found[0] == {**BASE["spec"]["containers"][0], "image": "w:2"}


def test_environment_variables_meet_by_name_and_are_replaced() -> None:
    """A variable from a Secret takes the place of a plain one, without its value beside it; the order stays."""
    source = {"secretKeyRef": {"name": "s", "key": "k"}}

    found = worker({"env": [{"name": "Z", "value": "3"}, {"name": "X", "valueFrom": source}]})["env"]

    assert found == [{"name": "X", "valueFrom": source}, {"name": "Y", "value": "2"}, {"name": "Z", "value": "3"}]


def test_volumes_meet_by_name_and_have_one_source() -> None:
    """A claim takes the place of an empty directory: a volume with both would be refused."""
    claim = {"claimName": "weights"}

    found = merged(BASE, {"spec": {"volumes": [{"name": "cache", "persistentVolumeClaim": claim}]}})["spec"]["volumes"]

    assert found == [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "persistentVolumeClaim": claim}]


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("volumeMounts", "mountPath"),
        ("volumeDevices", "devicePath"),
        ("ports", "containerPort"),
        ("env", "name"),
        ("imagePullSecrets", "name"),
        ("hostAliases", "ip"),
        ("schedulingGates", "name"),
        ("resourceClaims", "name"),
        ("topologySpreadConstraints", "topologyKey"),
        ("volumes", "name"),
    ],
)
def test_each_list_with_a_key_meets_by_it(field: str, key: str) -> None:
    """Items with an equal key are one; the patch's is taken whole; others are added."""
    found = merged({field: [{key: "a", "old": 1}]}, {field: [{key: "b"}, {key: "a", "new": 2}]})

    assert found == {field: [{key: "a", "new": 2}, {key: "b"}]}


def test_an_item_is_removed_by_directive() -> None:
    """`$patch: delete` removes the item of its key, and leaves nothing of itself."""
    found = merged(
        BASE, {"spec": {"volumes": [{"name": "tmp", "$patch": "delete"}, {"name": "x", "$patch": "delete"}]}}
    )

    assert found["spec"]["volumes"] == [{"name": "cache", "emptyDir": {}}]


def test_tolerations_are_added_and_replace_those_of_the_same_taint() -> None:
    """A toleration of the user's does not remove ours, but for the same key and effect it takes its place."""
    mine = {"key": "team", "operator": "Exists"}
    longer = {"key": "lost", "effect": "NoExecute", "tolerationSeconds": 300}

    found = merged(BASE, {"spec": {"tolerations": [mine, longer]}})["spec"]["tolerations"]

    assert found == [BASE["spec"]["tolerations"][1], mine, longer]


def test_other_lists_are_replaced() -> None:
    """Arguments, commands and selector terms have no key."""
    assert worker({"args": ["c"]})["args"] == ["c"]


def test_a_mapping_takes_the_place_of_what_is_none() -> None:
    """A patch may give a field a shape it did not have."""
    assert merged({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}


def test_nothing_is_shared_with_the_arguments() -> None:
    """The result may be changed: neither the defaults nor the user's template change with it."""
    patch: dict[str, Any] = {
        "metadata": {"labels": {"x": "y"}},
        "spec": {
            "tolerations": [{"key": "k"}],
            "containers": [{"name": "b", "args": ["x"]}],
            "volumes": [{"name": "v"}],
        },
    }
    base_before, patch_before = deepcopy(BASE), deepcopy(patch)

    found = merged(BASE, patch)
    for item in (*found["spec"]["containers"], *found["spec"]["tolerations"], *found["spec"]["volumes"]):
        item["changed"] = True
    found["spec"]["containers"][1]["args"].append("y")
    found["metadata"]["labels"]["z"] = ""

    assert (BASE, patch) == (base_before, patch_before)


@pytest.mark.parametrize(
    "template",
    [
        {},
        {"metadata": {"labels": {"team": "a"}, "annotations": {"x/y": "z"}}},
        {"metadata": None, "spec": None},
        {"metadata": {"labels": None}},
        {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1}},
        {"spec": {"containers": [{"name": "worker", "env": [{"name": "AWS_REGION", "value": "x"}]}]}},
        {"spec": {"containers": [{"name": "proxy", "env": [{"name": "INFERENCERUN_SETTINGS", "value": "x"}]}]}},
        {"spec": {"volumes": [{"name": "tmp", "$patch": "delete"}], "tolerations": [{"operator": "Exists"}]}},
        {"spec": {"affinity": None, "volumes": None, "nodeSelector": {"env": "prod", "ports": "8"}}},
        {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": None}}},
        {"spec": {"volumes": [{"name": "c", "configMap": {"name": "m", "items": [{"key": "a", "path": "b"}]}}]}},
    ],
)
def test_sensible_templates_have_no_mistakes(template: dict[str, Any]) -> None:
    """What users write is taken."""
    assert mistakes(template) == []


def in_worker(**changes: Any) -> dict[str, Any]:
    """A template for the worker container."""
    return {"spec": {"containers": [{"name": "worker", **changes}]}}


@pytest.mark.parametrize(
    ("template", "path", "remedy"),
    [
        ({"spec": []}, "spec", "mapping"),
        ({"metadata": "x"}, "metadata", "mapping"),
        ({"metadata": {"labels": ["a"]}}, "metadata.labels", "mapping"),
        ({"spec": {"tolerations": {"key": "a"}}}, "spec.tolerations", "list"),
        ({"spec": {"tolerations": ["a"]}}, "spec.tolerations[0]", "mapping"),
        ({"spec": {"affinity": []}}, "spec.affinity", "mapping"),
        ({"spec": {"affinity": {"nodeAffinity": []}}}, "spec.affinity.nodeAffinity", "mapping"),
        ({"kind": "Pod"}, "kind", "metadata and spec"),
        ({"metadata": {"name": "x"}}, "metadata.name", "labels and annotations"),
        (
            {"metadata": {"labels": {"inferencerun.dev/run": "x"}}},
            "metadata.labels.inferencerun.dev/run",
            "finds its pods",
        ),
        (
            {"metadata": {"labels": {"app.kubernetes.io/managed-by": "x"}}},
            "metadata.labels.app.kubernetes.io/managed-by",
            "finds its pods",
        ),
        ({"metadata": {"annotations": {"a": 1}}}, "metadata.annotations.a", "text"),
        ({"spec": {"restartPolicy": "Always"}}, "spec.restartPolicy", "must not restart"),
        ({"spec": {"terminationGracePeriodSeconds": 0}}, "spec.terminationGracePeriodSeconds", "at least 1"),
        ({"spec": {"terminationGracePeriodSeconds": "30"}}, "spec.terminationGracePeriodSeconds", "whole number"),
        (in_worker(**{"$patch": "delete"}), "spec.containers[worker]", "keep it"),
        (
            in_worker(env=[{"name": "INFERENCERUN_POD_UID", "value": "x"}]),
            "spec.containers[worker].env[INFERENCERUN_POD_UID]",
            "the operator sets it",
        ),
        ({"spec": {"containers": {"name": "worker"}}}, "spec.containers", "list"),
        ({"spec": {"containers": None}}, "spec.containers", "the worker is one"),
        ({"spec": {"containers": ["worker"]}}, "spec.containers[0]", "'name'"),
        ({"spec": {"containers": [{"image": "x"}]}}, "spec.containers[0]", "'name'"),
        (in_worker(env={"A": "b"}), "spec.containers[0].env", "list"),
        (in_worker(env=[{"value": "x"}]), "spec.containers[0].env[0]", "'name'"),
        (in_worker(env=["A=b"]), "spec.containers[0].env[0]", "'name'"),
        (in_worker(volumeMounts=[{"name": "x"}]), "spec.containers[0].volumeMounts[0]", "'mountPath'"),
        ({"spec": {"$patch": "replace"}}, "spec.$patch", "delete"),
        ({"spec": {"volumes": [{"name": "a", "$patch": "replace"}]}}, "spec.volumes[0].$patch", "delete"),
        ({"spec": {"$setElementOrder/volumes": []}}, "spec.$setElementOrder/volumes", "delete"),
    ],
)
def test_a_mistake_has_path_and_remedy(template: dict[str, Any], path: str, remedy: str) -> None:
    """What would break the operator, or cannot be merged, is refused before any pod is made."""
    ((found_path, _, found_remedy),) = mistakes(template)

    assert found_path == path
    assert remedy in found_remedy
