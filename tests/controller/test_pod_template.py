"""controller.pod_template: the pod of a worker, as the API server is to get it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract import names, settings
from contract.errors import SpecError
from controller.api import Provider, worker_settings
from controller.pod_template import (
    GRACE_PERIOD_S,
    MAX_LABEL_LENGTH,
    METRICS_PORT,
    build_pod,
    grace_period_s,
    label_value,
    worker_selector,
)
from controller.pods import read_pod
from tests import make

TERMS = "requiredDuringSchedulingIgnoredDuringExecution"


def pod(changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """The pod of an ordinary worker; `changes` go into workers, `options` to build_pod."""
    given: dict[str, Any] = {
        "name": "run-1-2",
        "namespace": "ns",
        "slot": 1,
        "attempt": 2,
        "resource_uid": "uid-of-run",
        "generation": 3,
        "settings_json": "{}",
        "image": "worker:1",
    }
    return build_pod(make.run({"workers": changes or {}}), **(given | options))


def capacity(provider: str, prefer: str = "spot") -> dict[str, Any]:
    """Changes that choose a capacity."""
    return {"capacity": {"provider": provider, "prefer": prefer}}


def worker(found: dict[str, Any]) -> dict[str, Any]:
    """The worker container."""
    (container,) = (item for item in found["spec"]["containers"] if item["name"] == names.CONTAINER_WORKER)
    result: dict[str, Any] = container
    return result


def env(found: dict[str, Any]) -> dict[str, Any]:
    """Its environment."""
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in worker(found)["env"]}


def required(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Terms of the required node affinity."""
    affinity = found["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms: list[dict[str, Any]] = affinity.get(TERMS, {}).get("nodeSelectorTerms", [])
    return terms


def expressions(found: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Label expressions of the only term."""
    (term,) = required(found)
    return [(item["key"], item["operator"], item["values"]) for item in term["matchExpressions"]]


def test_the_watch_reads_what_the_template_writes() -> None:
    """Run, slot, attempt and generation come back from the pod as the API server returns it."""
    found = pod()
    found["metadata"] |= {"uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1"}

    facts = read_pod(found)

    assert (facts.name, facts.run, facts.run_uid) == ("run-1-2", "run", "uid-of-run")
    assert (facts.slot, facts.attempt, facts.generation) == (1, 2, 3)


def test_the_selector_selects_it() -> None:
    """The labels of one run's workers are on the pod."""
    assert worker_selector("uid-of-run").items() <= pod()["metadata"]["labels"].items()


def test_the_run_owns_it() -> None:
    """It goes with the run, and a foreground deletion waits for it."""
    (owner,) = pod()["metadata"]["ownerReferences"]

    assert owner == {
        "apiVersion": "inferencerun.dev/v1alpha1",
        "kind": "InferenceRun",
        "name": "run",
        "uid": "uid-of-run",
        "controller": True,
        "blockOwnerDeletion": True,
    }


def test_no_finalizer_holds_it() -> None:
    """Pods can be deleted while the operator is down (ADR 7)."""
    assert "finalizers" not in pod()["metadata"]


def test_the_worker_gets_its_settings_and_identity() -> None:
    """Settings arrive as text, name, uid and node from the downward API."""
    found = env(pod(settings_json='{"a": 1}'))

    assert found[names.ENV_SETTINGS] == '{"a": 1}'
    paths = {name: value["fieldRef"]["fieldPath"] for name, value in found.items() if "fieldRef" in value}
    assert paths == {
        names.ENV_POD_NAME: "metadata.name",
        names.ENV_POD_UID: "metadata.uid",
        names.ENV_NODE_NAME: "spec.nodeName",
    }


def test_threads_are_those_of_the_cpu_limit() -> None:
    """Torch counts the node's cores, whatever the container may use; a template may set another number."""
    template = {"spec": {"containers": [{"name": "worker", "env": [{"name": "OMP_NUM_THREADS", "value": "3"}]}]}}

    assert env(pod())["OMP_NUM_THREADS"] == {"resourceFieldRef": {"resource": "limits.cpu"}}
    assert env(pod({"template": template}))["OMP_NUM_THREADS"] == "3"


def as_kubelet(text: str) -> str:
    """What the kubelet makes of a value in which no variable is known: $$ is $, all else stays."""
    return text.replace("$$", "$")


@pytest.mark.parametrize("text", ["$(HOME)", "$$", "a$b", "$$(X)", "$"])
def test_dollars_in_settings_survive_the_kubelet(text: str) -> None:
    """A pattern or parameter with $( in it is no variable."""
    run = make.run({"model": {"name": "torch", "source": "models:build", "parameters": {"p": text}}})
    options = worker_settings(run, generation=1, run_uid="u", worker_index=0, num_workers=1)

    found = env(pod(settings_json=settings.to_json(options)))[names.ENV_SETTINGS]

    assert "$(" not in found.replace("$$", "")
    assert settings.from_json(as_kubelet(found)) == options


def test_it_is_locked_down() -> None:
    """No root, no capabilities, no writable image, no token of the API server: fit for the restricted standard."""
    found = pod()
    container = worker(found)

    assert found["spec"]["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert found["spec"]["automountServiceAccountToken"] is False


def test_what_must_be_writable_is_a_volume() -> None:
    """/tmp (also the home), the cache of model files, and shared memory; each mount has its volume."""
    found = pod()
    mounts = {item["mountPath"]: item["name"] for item in worker(found)["volumeMounts"]}
    volumes = {item["name"]: item["emptyDir"] for item in found["spec"]["volumes"]}

    assert set(mounts) == {"/tmp", "/cache", "/dev/shm"}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["medium"] == "Memory"
    assert env(found)["HOME"] in mounts
    assert env(found)[names.ENV_CACHE_DIR] in mounts


def test_it_is_judged_and_not_restarted() -> None:
    """The kubelet restarts nothing, and a worker that dies early leaves the end of its log as its message."""
    found = pod()

    assert found["spec"]["restartPolicy"] == "Never"
    assert worker(found)["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_it_asks_autoscalers_to_let_it_be() -> None:
    """Neither Karpenter nor the cluster autoscaler moves it to save a node."""
    annotations = pod()["metadata"]["annotations"]

    assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


@pytest.mark.parametrize(("count", "expected"), [(1, "1"), (4, "4")])
def test_gpus(count: int, expected: str) -> None:
    """Devices are requested and limited alike, and their taint is tolerated."""
    found = pod({"gpusPerWorker": count, "gpuResource": "amd.com/gpu"})
    resources = worker(found)["resources"]

    assert resources["limits"] == {"amd.com/gpu": expected}
    assert resources["requests"]["amd.com/gpu"] == expected
    assert {"key": "amd.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in found["spec"]["tolerations"]


def test_no_gpu() -> None:
    """A worker on the CPU asks for no device and tolerates no taint of one."""
    found = pod({"gpusPerWorker": 0})

    assert "limits" not in worker(found)["resources"]
    assert "nvidia.com/gpu" not in json.dumps(found)


def test_a_lost_node_is_given_up_after_half_a_minute() -> None:
    """Not after Kubernetes' five minutes."""
    seconds = {item["key"]: item.get("tolerationSeconds") for item in pod({"gpusPerWorker": 0})["spec"]["tolerations"]}

    assert seconds == {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30}


@pytest.mark.parametrize(
    ("provider", "key", "value"),
    [
        ("gke", "cloud.google.com/gke-spot", "true"),
        ("eks", "eks.amazonaws.com/capacityType", "SPOT"),
        ("karpenter", "karpenter.sh/capacity-type", "spot"),
    ],
)
def test_capacity(provider: str, key: str, value: str) -> None:
    """Spot is waited for, on demand keeps off spot nodes, also when a spot worker has waited too long."""
    # GKE still has nodes of the kind that came before spot.
    older = [("cloud.google.com/gke-preemptible", "NotIn", ["true"])] if provider == "gke" else []

    assert expressions(pod(capacity(provider))) == [(key, "In", [value])]
    assert expressions(pod(capacity(provider), is_on_demand=True)) == [(key, "NotIn", [value]), *older]
    assert expressions(pod(capacity(provider, "onDemand"))) == [(key, "NotIn", [value]), *older]


def test_without_a_provider_capacity_is_not_chosen() -> None:
    """Nothing is known of the nodes' labels."""
    assert "affinity" not in pod(capacity("none"))["spec"]


def test_taints_of_spot_nodes_are_tolerated_by_spot_workers_only() -> None:
    """GKE taints spot nodes where told to; nothing tolerates everything, or Karpenter would give no notice."""
    spot = {item["key"] for item in pod(capacity("gke"))["spec"]["tolerations"]}
    on_demand = {item["key"] for item in pod(capacity("gke"), is_on_demand=True)["spec"]["tolerations"]}

    assert spot - on_demand == {"cloud.google.com/gke-spot", "cloud.google.com/gke-provisioning"}
    assert all(item.get("key") for item in pod(capacity("karpenter"))["spec"]["tolerations"])


@pytest.mark.parametrize(("provider", "seconds"), [("gke", 25), ("eks", 110), ("karpenter", 110), ("none", 30)])
def test_grace_period(provider: str, seconds: int) -> None:
    """As long as the provider gives notice; the worker's settings are told the same."""
    run = make.run({"workers": capacity(provider)})

    assert pod(capacity(provider))["spec"]["terminationGracePeriodSeconds"] == seconds == grace_period_s(run)
    assert set(GRACE_PERIOD_S) == set(Provider)


def test_grace_period_of_the_template() -> None:
    """The user's wins, in the pod and in the worker's settings."""
    changes = {"template": {"spec": {"terminationGracePeriodSeconds": 300}}}

    assert pod(changes)["spec"]["terminationGracePeriodSeconds"] == 300
    assert grace_period_s(make.run({"workers": changes})) == 300


def test_nodes_to_avoid() -> None:
    """By name, one field selector each, as the API server wants it."""
    (term,) = required(pod(avoid_nodes=("a", "b")))

    assert term == {
        "matchFields": [
            {"key": "metadata.name", "operator": "NotIn", "values": ["a"]},
            {"key": "metadata.name", "operator": "NotIn", "values": ["b"]},
        ]
    }


def test_a_pod_tells_which_nodes_it_avoids_for_our_sake() -> None:
    """The controller reads them back, and takes them for no others that the template keeps away from."""
    told = read_pod({**pod(avoid_nodes=("a", "b")), "status": {}})

    assert told.avoids == ("a", "b")
    assert read_pod({**pod(), "status": {}}).avoids == ()


def test_karpenter_is_asked_politely() -> None:
    """It launches no node for a pod that requires anything of a host name, or of a field."""
    found = pod(capacity("karpenter"), avoid_nodes=("a", "b"))
    (preference,) = found["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]

    assert "matchFields" not in json.dumps(found)
    assert expressions(found) == [("karpenter.sh/capacity-type", "In", ["spot"])]
    assert preference["preference"]["matchExpressions"] == [
        {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["a", "b"]}
    ]


def test_the_users_affinity_is_narrowed_not_lost() -> None:
    """Each of the user's terms, which are alternatives, also says capacity and nodes to avoid; the template stays."""
    zone = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["z"]}
    kind = {"key": "gpu", "operator": "In", "values": ["h100"]}
    terms = [{"matchExpressions": [zone]}, {"matchExpressions": [kind]}]
    changes = capacity("gke") | {
        "template": {"spec": {"affinity": {"nodeAffinity": {TERMS: {"nodeSelectorTerms": terms}}}}}
    }
    spot = {"key": "cloud.google.com/gke-spot", "operator": "In", "values": ["true"]}

    found = required(pod(changes, avoid_nodes=("a",)))

    assert [term["matchExpressions"] for term in found] == [[zone, spot], [kind, spot]]
    assert all(len(term["matchFields"]) == 1 for term in found)
    assert terms == [{"matchExpressions": [zone]}, {"matchExpressions": [kind]}]


def test_preferences_of_the_user_stay() -> None:
    """A preference of ours comes after theirs."""
    theirs = {"weight": 1, "preference": {"matchExpressions": []}}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [theirs]}}
    changes = capacity("karpenter") | {"template": {"spec": {"affinity": affinity}}}

    found = pod(changes, avoid_nodes=("a",))["spec"]["affinity"]["nodeAffinity"]

    assert found["preferredDuringSchedulingIgnoredDuringExecution"][0] == theirs
    assert len(found["preferredDuringSchedulingIgnoredDuringExecution"]) == 2


def test_the_template_wins_over_defaults() -> None:
    """Image, resources, account, volumes, security: all that is not needed to keep a run going."""
    found = pod(
        {
            "template": {
                "metadata": {"labels": {"team": "a"}, "annotations": {"karpenter.sh/do-not-disrupt": None}},
                "spec": {
                    "serviceAccountName": "theirs",
                    "hostNetwork": True,
                    "volumes": [{"name": "cache", "hostPath": {"path": "/mnt/weights"}}],
                    "containers": [
                        {
                            "name": "worker",
                            "image": "theirs:2",
                            "resources": {"limits": {"memory": "8Gi"}},
                            "env": [{"name": "AWS_REGION", "value": "eu-west-1"}],
                        }
                    ],
                },
            }
        },
        service_account="ours",
        image_pull_policy="Never",
    )

    assert found["metadata"]["labels"]["team"] == "a"
    assert "karpenter.sh/do-not-disrupt" not in found["metadata"]["annotations"]
    assert (found["spec"]["serviceAccountName"], found["spec"]["hostNetwork"]) == ("theirs", True)
    assert {"name": "cache", "hostPath": {"path": "/mnt/weights"}} in found["spec"]["volumes"]
    assert (worker(found)["image"], worker(found)["imagePullPolicy"]) == ("theirs:2", "Never")
    assert worker(found)["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": "8Gi"}
    assert env(found)["AWS_REGION"] == "eu-west-1"
    assert names.ENV_SETTINGS in env(found)


def test_metrics_are_served_on_a_named_port() -> None:
    """The variable that the worker reads and the port that a PodMonitor selects are the same."""
    found = pod()

    assert worker(found)["ports"] == [{"name": names.PORT_METRICS, "containerPort": METRICS_PORT}]
    assert env(found)[names.ENV_METRICS_PORT] == str(METRICS_PORT)


def test_a_template_may_switch_metrics_off() -> None:
    """Its value of the variable wins."""
    off = {"name": names.ENV_METRICS_PORT, "value": "0"}

    found = pod({"template": {"spec": {"containers": [{"name": names.CONTAINER_WORKER, "env": [off]}]}}})

    assert env(found)[names.ENV_METRICS_PORT] == "0"


def test_in_the_network_of_the_node_there_is_no_port() -> None:
    """It would be a port of the node, and two workers of a node would keep each other from being placed."""
    found = pod({"template": {"spec": {"hostNetwork": True}}})

    assert "ports" not in worker(found)
    assert names.ENV_METRICS_PORT not in env(found)


def test_account_and_pull_policy_are_left_out_unless_given() -> None:
    """Then the API server's defaults hold."""
    assert "serviceAccountName" not in pod()["spec"]
    assert "imagePullPolicy" not in worker(pod())
    assert pod(service_account="a")["spec"]["serviceAccountName"] == "a"


def test_what_must_hold_wins_over_the_template() -> None:
    """A template that slipped past parse_run makes no pod."""
    run = make.run()
    run.spec.workers.template["spec"] = {"restartPolicy": "Always"}  # type: ignore[index]  # parse_run would refuse it

    with pytest.raises(SpecError, match=r"spec.workers.template.spec.restartPolicy: 'Always' cannot be used"):
        build_pod(
            run,
            name="n",
            namespace="ns",
            slot=0,
            attempt=0,
            resource_uid="u",
            generation=1,
            settings_json="{}",
            image="i",
        )


def test_kueue_labels_pass_on() -> None:
    """Queue and priority of the run are those of its pods; other labels are not."""
    labels = {"kueue.x-k8s.io/queue-name": "q", "kueue.x-k8s.io/priority-class": "p", "team": "a"}

    found = pod(run_labels=labels)["metadata"]["labels"]

    assert (found["kueue.x-k8s.io/queue-name"], found["kueue.x-k8s.io/priority-class"]) == ("q", "p")
    assert "team" not in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [("run", "run"), ("r" * 63, "r" * 63), ("r" * 50 + "." * 50, "r" * 50)],
)
def test_labels_fit(text: str, expected: str) -> None:
    """A long name is cut at a letter and told apart by a hash; a short one stays."""
    found = label_value(text)

    assert found.startswith(expected)
    assert len(found) <= MAX_LABEL_LENGTH
    assert (found == text) == (len(text) <= MAX_LABEL_LENGTH)


def test_long_names_stay_apart() -> None:
    """Two names that differ only beyond a label's length have different labels."""
    assert label_value("r" * 100 + "a") != label_value("r" * 100 + "b")


def test_it_is_json() -> None:
    """The pod survives the way to the API server."""
    found = pod(capacity("gke"), avoid_nodes=("a",))

    assert json.loads(json.dumps(found)) == found


def test_the_documented_template_is_taken() -> None:
    """What docs/worker-pods.md shows makes the pod that it says."""
    document = (Path(__file__).parents[2] / "docs/worker-pods.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)

    found = pod(yaml.safe_load(block)["workers"])

    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "weights"}} in found["spec"]["volumes"]
    assert len(found["spec"]["containers"]) == 1
    assert worker(found)["resources"]["limits"] == {"nvidia.com/gpu": "1", "cpu": "4", "memory": "32Gi"}


@pytest.mark.parametrize("provider", Provider)
def test_the_documented_providers_are_those_of_the_code(provider: Provider) -> None:
    """The table of docs/worker-pods.md has labels, taints and grace period of each provider."""
    document = (Path(__file__).parents[2] / "docs/worker-pods.md").read_text()
    (row,) = [line for line in document.splitlines() if line.startswith(f"| `{provider}` |")]
    _, _, nodes, taints, grace, _ = row.split("|")

    found = pod(capacity(provider))

    terms = expressions(found) if required(found) else []
    assert re.findall("`(.*?)`", nodes) == [f"{key}={value}" for key, _, (value,) in terms]
    tolerated = [item["key"] for item in found["spec"]["tolerations"] if item["operator"] == "Equal"]
    assert re.findall("`(.*?)`", taints) == tolerated
    assert grace.strip() == f"{GRACE_PERIOD_S[provider]} s"


def test_the_capacity_of_a_pod_is_on_its_label() -> None:
    """Where a run prefers spot; one on demand throughout has nothing to tell apart."""
    labels = [
        pod(capacity("gke"), is_on_demand=False)["metadata"]["labels"],
        pod(capacity("gke"), is_on_demand=True)["metadata"]["labels"],
        pod(capacity("gke", "onDemand"))["metadata"]["labels"],
    ]

    assert [found.get(names.LABEL_CAPACITY) for found in labels] == ["spot", "onDemand", None]


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"limits": {"memory": "4Gi"}}, ("1Gi", "8589934592")),
        ({"limits": {"memory": "4Gi"}, "requests": {"memory": "4Gi"}}, ("8589934592", "8589934592")),
        ({"limits": {"memory": "8Gi"}}, ("1Gi", "8Gi")),
    ],
)
def test_the_memory_limit_can_be_raised(resources: dict[str, Any], expected: tuple[str, str]) -> None:
    """The request follows where it was the same; a limit that is high enough stays as it was written."""
    template = {"spec": {"containers": [{"name": "worker", "resources": resources}]}}
    found = pod({"template": template}, memory_bytes=8 * 2**30)["spec"]["containers"][0]["resources"]

    assert (found["requests"]["memory"], found["limits"]["memory"]) == expected
