"""What the chart makes of values: objects that Kubernetes knows, which fit one another, on old and on new servers."""

from __future__ import annotations

import json
import re
from typing import Any

import helm_python
import kubernetes.client
import pytest
import yaml

from contract import names
from controller import settings
from tests.chart import rendering
from tests.chart.rendering import NAMESPACE, NEWEST, OLDEST, RELEASE, objects
from tests.chart.stored import problems
from tests.chart.value_sets import MONITORS, VALUE_SETS
from tests.chart.values_table import described

MODELS = {
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("v1", "Service"): "V1Service",
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("apps/v1", "Deployment"): "V1Deployment",
    ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
    ("policy/v1beta1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
    ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "V1ClusterRole",
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): "V1ClusterRoleBinding",
    ("rbac.authorization.k8s.io/v1", "Role"): "V1Role",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "V1RoleBinding",
}
"""The official client's models: they refuse what lacks a required field, and drop what they do not know."""
FOREIGN = {(MONITORS, kind) for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule")}
CRD_KIND = "CustomResourceDefinition"

sets = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS.keys())
servers = pytest.mark.parametrize("kubernetes_version", [OLDEST, "v1.24.9-gke.100", "v1.29.3-eks-adc7111", NEWEST])


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The objects of a kind."""
    return [item for item in found if item["kind"] == kind]


def deployment(values: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """The one Deployment."""
    (found,) = of_kind(objects(values, **options), "Deployment")
    return found


def container(values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The one container."""
    (found,) = deployment(values)["spec"]["template"]["spec"]["containers"]
    loaded: dict[str, Any] = found
    return loaded


def environment(values: dict[str, Any] | None = None) -> dict[str, Any]:
    """Its variables: a value, or where it comes from."""
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container(values)["env"]}


def test_helm_has_nothing_to_say_against_the_chart() -> None:
    """No error and no warning, under any set of values, on an old and a new server."""
    for values in VALUE_SETS.values():
        for version in (OLDEST, NEWEST):
            report = helm_python.lint(rendering.CHART, values, strict=True, kube_version=version)

            assert report["errors"] == []
            assert [item["error"] for item in report["messages"]] == ["icon is recommended"]


@sets
@servers
def test_each_object_is_one_that_kubernetes_knows(values: dict[str, Any], kubernetes_version: str) -> None:
    """No required field is missing, no field is unknown, and no value has the wrong type."""
    client = kubernetes.client.ApiClient()
    found = objects(values, kubernetes=kubernetes_version, apis=(MONITORS,))
    assert len(found) >= 5
    for item in found:
        kind = (item["apiVersion"], item["kind"])
        if kind in FOREIGN or item["kind"] == CRD_KIND:
            assert item["spec"]
            continue
        read = client.deserialize(json.dumps(item), MODELS[kind], "application/json")

        assert client.sanitize_for_serialization(read) == without_null(item)


def without_null(value: Any) -> Any:
    """The value without fields that say nothing."""
    if isinstance(value, dict):
        return {name: without_null(item) for name, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value


@sets
def test_names_and_labels_are_consistent(values: dict[str, Any]) -> None:
    """Each object has a name of its own, the labels of its release, and values of labels that the API takes."""
    found = objects(values, apis=(MONITORS,))
    keys = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in found]
    assert len(set(keys)) == len(keys)
    for item in found:
        if item["kind"] == CRD_KIND:
            continue
        labels = item["metadata"]["labels"]

        assert labels["app.kubernetes.io/instance"] == RELEASE
        assert labels["app.kubernetes.io/managed-by"] != names.MANAGED_BY, "the controller takes such pods for workers"
        assert all(re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", text) for text in labels.values())
        assert values.get("commonLabels", {}).items() <= labels.items()


@sets
def test_what_is_named_is_there(values: dict[str, Any]) -> None:
    """Selectors meet the pods, bindings the roles, and the pods' account exists unless somebody else makes it."""
    found = objects(values, apis=(MONITORS,))
    pods = of_kind(found, "Deployment")[0]["spec"]["template"]
    for item in found:
        if item["kind"] in {"Deployment", "PodDisruptionBudget", "ServiceMonitor"}:
            assert item["spec"]["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
        if item["kind"] == "Service":
            assert item["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    roles = {(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in found}
    for binding in (item for item in found if item["kind"].endswith("Binding")):
        reference = binding["roleRef"]
        assert (reference["kind"], binding["metadata"].get("namespace"), reference["name"]) in roles
        assert [subject["name"] for subject in binding["subjects"]] == [pods["spec"]["serviceAccountName"]]
    accounts = {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in of_kind(found, "ServiceAccount")}
    makes_account = values.get("controller", {}).get("serviceAccount", {}).get("create", True)

    assert ((NAMESPACE, pods["spec"]["serviceAccountName"]) in accounts) == makes_account


@sets
def test_the_controller_takes_its_environment(values: dict[str, Any]) -> None:
    """Every variable is a setting of the controller, and of its type."""
    given = {
        name: value if isinstance(value, str) else "from-the-pod"
        for name, value in environment(values).items()
        if name.startswith(settings.PREFIX)
    }
    read = settings.from_environment(given)

    assert read.lease_name == (values.get("fullnameOverride") or RELEASE)
    assert read.watch_namespace == values.get("controller", {}).get("watchNamespace", "")
    assert read.watch_nodes == values.get("rbac", {}).get("nodes", True)


def test_defaults_of_settings_are_the_controllers_own() -> None:
    """values.yaml names every setting that has no value of its own, with the default of the program."""
    own = {"worker_image", "worker_image_pull_policy", "worker_service_account", "watch_namespace", "watch_nodes"}
    own |= {"lease_namespace", "lease_name", "identity", "health_port", "health_address", "log_level"}
    expected = settings.Settings(worker_image="x")
    chart = settings.from_environment(
        {
            name: value
            for name, value in environment().items()
            if name.startswith(settings.PREFIX) and isinstance(value, str)
        }
    )
    offered = {
        re.sub("([A-Z])", r"_\1", name.replace("Seconds", "S")).lower() for name in default("controller.settings")
    }

    assert offered == {item.name for item in settings.fields(settings.Settings)} - own
    assert all(getattr(chart, name) == getattr(expected, name) for name in (*offered, "health_port", "log_level"))


def default(path: str) -> Any:
    """A value of values.yaml."""
    found = yaml.safe_load(rendering.VALUES.read_text())
    for name in path.split("."):
        found = found[name]
    return found


def test_the_pod_fits_the_restricted_standard() -> None:
    """Not root, nothing escalates, nothing but /tmp can be written."""
    pod = deployment()["spec"]["template"]["spec"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [item["mountPath"] for item in container()["volumeMounts"]] == ["/tmp"]
    assert not pod.get("hostNetwork")


def test_images() -> None:
    """Registry, repository, and a digest rather than a tag; the chart's version where neither is given."""
    values = VALUE_SETS["registry"]

    assert container()["image"] == "inferencerun-controller:0.1.0"
    assert container(values)["image"] == "registry.example/team/inferencerun-controller:1.2.3"
    assert environment(values)["INFERENCERUN_CONTROLLER_WORKER_IMAGE"] == (
        f"registry.example/team/inferencerun-worker@sha256:{'0' * 64}"
    )


def test_an_upgrade_leaves_no_gap() -> None:
    """A new controller is ready before an old one goes; on the node's network it cannot be, since both want the port."""
    on_node = VALUE_SETS["network of the node"]

    assert deployment()["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert deployment(on_node)["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize(
    ("replicas", "version", "expected"),
    [(1, NEWEST, []), (2, NEWEST, ["policy/v1"]), (2, "v1.21.0", ["policy/v1"]), (2, OLDEST, ["policy/v1beta1"])],
)
def test_the_disruption_budget(replicas: int, version: str, expected: list[str]) -> None:
    """In the version that the server has, and none that would block the drain of a node for ever."""
    found = of_kind(objects({"controller": {"replicas": replicas}}, kubernetes=version), "PodDisruptionBudget")

    assert [item["apiVersion"] for item in found] == expected
    assert all(item["spec"]["maxUnavailable"] == 1 for item in found)


def test_a_namespaced_controller_has_no_rights_beyond_its_namespace() -> None:
    """But for nodes, and with `rbac.nodes: false` for nothing."""
    found = objects(VALUE_SETS["namespaced without nodes"])
    with_nodes = objects({"controller": {"watchNamespace": "a"}, "rbac": {"aggregate": False}})

    assert of_kind(found, "ClusterRole") == of_kind(found, "ClusterRoleBinding") == []
    assert {item["metadata"]["namespace"] for item in of_kind(found, "Role")} == {NAMESPACE, "proteins"}
    assert [item["rules"][0]["resources"] for item in of_kind(with_nodes, "ClusterRole")] == [["nodes"]]


def test_two_releases_of_one_name_in_two_namespaces() -> None:
    """Objects without a namespace are told apart."""
    values = {"crds": {"install": False}}
    both = (objects(values, namespace="a"), objects(values, namespace="b"))
    first, second = (
        {(item["kind"], item["metadata"]["name"]) for item in found if "namespace" not in item["metadata"]}
        for found in both
    )

    assert first
    assert first.isdisjoint(second)


def test_people_get_their_rights_through_the_built_in_roles() -> None:
    """Viewers read, editors and administrators also write; nobody writes the status."""
    given: dict[str, set[tuple[str, str]]] = {"view": set(), "edit": set(), "admin": set()}
    for role in of_kind(objects(), "ClusterRole"):
        for name, rights in given.items():
            if role["metadata"]["labels"].get(f"rbac.authorization.k8s.io/aggregate-to-{name}") == "true":
                rights |= {
                    (kind, verb) for rule in role["rules"] for kind in rule["resources"] for verb in rule["verbs"]
                }

    assert {verb for _, verb in given["view"]} == {"get", "list", "watch"}
    assert given["view"] < given["edit"] == given["admin"]
    assert {verb for kind, verb in given["edit"] if kind == "inferenceruns/status"} == {"get"}
    assert ("inferenceruns/scale", "patch") in given["edit"]


def test_accounts_of_workers() -> None:
    """One in each namespace of runs, with its annotations and without a token; the controller is told its name."""
    values = VALUE_SETS["irsa"]
    found = [item for item in of_kind(objects(values), "ServiceAccount") if item["metadata"]["namespace"] != NAMESPACE]

    assert {item["metadata"]["namespace"] for item in found} == {"proteins", "texts"}
    assert {item["metadata"]["name"] for item in found} == {f"{RELEASE}-worker"}
    assert all(
        item["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/b"} for item in found
    )
    assert not any(item["automountServiceAccountToken"] for item in found)
    assert environment(values)["INFERENCERUN_CONTROLLER_WORKER_SERVICE_ACCOUNT"] == f"{RELEASE}-worker"
    assert environment()["INFERENCERUN_CONTROLLER_WORKER_SERVICE_ACCOUNT"] == ""


def test_what_a_cluster_may_lack_is_off() -> None:
    """By default nothing needs the Prometheus operator, Grafana, or a network plug-in that knows policies."""
    kinds = {item["kind"] for item in objects()}

    assert kinds.isdisjoint({"NetworkPolicy", "ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"})


def test_alerts_and_dashboard_are_passed_on_as_they_are() -> None:
    """Their own braces are none of Helm's business."""
    found = objects(VALUE_SETS["all of metrics"], apis=(MONITORS,))
    (rule,), (board,) = of_kind(found, "PrometheusRule"), of_kind(found, "ConfigMap")
    files = rendering.CHART / "files"

    assert rule["spec"] == yaml.safe_load((files / "alerts.yaml").read_text())
    assert rule["spec"]["groups"]
    assert json.loads(board["data"]["inferencerun.json"]) == json.loads((files / "dashboard.json").read_text())
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_scrapers_find_the_ports() -> None:
    """The monitors name ports that the Service and the workers' pods have."""
    found = objects(VALUE_SETS["all of metrics"], apis=(MONITORS,))
    (service,), (monitor,), (pods,) = (of_kind(found, kind) for kind in ("Service", "ServiceMonitor", "PodMonitor"))

    assert [item["port"] for item in monitor["spec"]["endpoints"]] == [
        item["name"] for item in service["spec"]["ports"]
    ]
    assert service["spec"]["ports"][0]["targetPort"] in [item["name"] for item in container()["ports"]]
    assert [item["port"] for item in pods["spec"]["podMetricsEndpoints"]] == [names.PORT_METRICS]
    assert pods["spec"]["selector"]["matchLabels"] == {names.LABEL_MANAGED_BY: names.MANAGED_BY}
    assert pods["spec"]["namespaceSelector"] == {"any": True}


def test_the_notes_name_what_is_there() -> None:
    """The next three commands fit the release."""
    notes = rendering.texts({"controller": {"watchNamespace": "proteins"}})["inferencerun-operator/templates/NOTES.txt"]
    run = yaml.safe_load(re.search(r"<<'END'\n(.*?)\n   END", notes, re.DOTALL)[1])

    assert f"--namespace {NAMESPACE} rollout status deployment/{RELEASE}" in notes
    assert notes.count("--namespace proteins") == 2
    assert run["kind"] == names.KIND
    assert problems(run, rendering.schema()) == []


def test_every_value_has_its_comment_and_its_row() -> None:
    """The README's table is up to date; `make verify` writes it."""
    values = described(rendering.VALUES.read_text())

    assert len(values) > 60
    assert rendering.README.read_text() == rendering.readme()


def test_a_value_without_comment_is_named() -> None:
    """It is a mistake, not a row without words."""
    with pytest.raises(ValueError, match=r"a\.c has no comment"):
        described("a:\n  # -- Seconds.\n  b: 1\n  c: 2\n")
