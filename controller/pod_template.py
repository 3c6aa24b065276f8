"""The pod of one worker, from the run and the planner's word. Pure: no client, no clock; the result is JSON-able.

Three layers, in this order: the operator's defaults, the user's partial template over them (`strategic_merge`), and what
must hold whatever the template says (names, labels, owner, the worker's settings, capacity, nodes to avoid).

Pods carry no finalizer. It would keep a deleted pod until its end has been read, but the ends that delete a pod by
themselves (eviction, taint, preemption, garbage collection after a lost node) are never charged, whereas one that speaks
against a record leaves its pod in place, for us to delete. So little could be gained, at the price of a call per pod and of
pods that nobody can delete while the operator is down (docs/adr/0009-no-finalizer-on-pods.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from contract import names
from contract.errors import SpecError
from controller.api import Capacity, InferenceRun, Provider
from controller.fields import parse_quantity
from controller.strategic_merge import merged, mistakes

MAX_LABEL_LENGTH = 63
"""Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set"""

LOST_NODE_TOLERATION_S = 30
"""How long a pod stays bound to a node that is not ready or unreachable. Kubernetes' default of 300 s holds its shard, and
pays for nothing, for five minutes; below about 10 s a kubelet that is merely restarted would cost a worker."""

GRACE_PERIOD_S = {
    Provider.GKE: 25,
    Provider.EKS: 110,
    Provider.KARPENTER: 110,
    Provider.NONE: 30,
}
"""From SIGTERM to SIGKILL. GKE tells 30 s ahead of taking a spot node, of which ordinary pods get 15 s (25 s in older
versions and on Autopilot), whatever they ask for. EC2 tells two minutes ahead; the rest is for the eviction to arrive.
Source: https://docs.cloud.google.com/kubernetes-engine/docs/concepts/spot-vms
"""

_SPOT_LABELS: dict[Provider, tuple[str, str]] = {
    Provider.GKE: ("cloud.google.com/gke-spot", "true"),
    Provider.EKS: ("eks.amazonaws.com/capacityType", "SPOT"),
    Provider.KARPENTER: ("karpenter.sh/capacity-type", "spot"),
}
"""What the provider's spot nodes are labelled with."""

_ALSO_TAKEN_AWAY: dict[Provider, tuple[str, str]] = {
    Provider.GKE: ("cloud.google.com/gke-preemptible", "true"),
}
"""What other nodes are labelled with that a provider takes away: no place for workers on demand, and none to ask for."""

_SPOT_TAINTS: dict[Provider, tuple[tuple[str, str], ...]] = {
    Provider.GKE: (("cloud.google.com/gke-spot", "true"), ("cloud.google.com/gke-provisioning", "spot")),
}
"""What the provider's spot nodes may be tainted with. Never tolerate everything instead: Karpenter does not evict pods that
tolerate `karpenter.sh/disrupted`, so they would get no notice at all."""

_QUEUE_PREFIX = "kueue.x-k8s.io/"
_HOSTNAME = "kubernetes.io/hostname"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"

METRICS_PORT = 9090
"""Where a worker serves its metrics, in the pod's own network."""

_CACHE = "/cache"
_SHM_SIZE = "1Gi"


def grace_period_s(run: InferenceRun) -> int:
    """Seconds from SIGTERM to SIGKILL of this run's pods; goes into the worker's settings, too."""
    spec = run.spec.workers.template.get("spec") or {}
    found = spec.get("terminationGracePeriodSeconds") if isinstance(spec, Mapping) else None
    return found if isinstance(found, int) else GRACE_PERIOD_S[run.spec.workers.capacity.provider]


def label_value(text: str) -> str:
    """`text` as a label's value: itself, or cut and told apart by a hash when it is too long."""
    if len(text) <= MAX_LABEL_LENGTH:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: MAX_LABEL_LENGTH - len(digest) - 1].rstrip('-._')}-{digest}"


def worker_selector(resource_uid: str) -> dict[str, str]:
    """Labels that the worker pods of one run have, and no other pod has."""
    return {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_RUN_UID: resource_uid}


def build_pod(
    run: InferenceRun,
    *,
    name: str,
    namespace: str,
    slot: int,
    attempt: int,
    resource_uid: str,
    generation: int,
    settings_json: str,
    image: str,
    image_pull_policy: str | None = None,
    service_account: str | None = None,
    avoid_nodes: Sequence[str] = (),
    is_on_demand: bool = False,
    memory_bytes: int | None = None,
    run_labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The pod of the worker in `slot`.

    Args:
        run: the run it works for.
        name: of the pod; deterministic, so that a repeated start meets itself.
        namespace: of the run, and so of the pod.
        slot: place that the worker takes.
        attempt: which worker of this slot it is.
        resource_uid: metadata.uid of the run, its owner.
        generation: generation in the store; not metadata.generation.
        settings_json: `contract.settings.to_json` of the worker's settings.
        image: of the worker, unless the template names another.
        image_pull_policy: None = the API server's default.
        service_account: None = the namespace's default.
        avoid_nodes: nodes whose breaker is open.
        is_on_demand: take on-demand capacity although the run prefers spot: it has been waiting for too long.
        memory_bytes: the worker's memory limit, at least the template's; None = as the template says.
        run_labels: metadata.labels of the run; Kueue's (queue name, priority class) pass on to the pod.

    Raises:
        SpecError: the template says what it may not; parse_run refuses the same, so this is for callers that did not ask it.
    """
    template = run.spec.workers.template
    if found := mistakes(template):
        lines = [f"spec.workers.template.{path}: {value!r} cannot be used; {remedy}" for path, value, remedy in found]
        raise SpecError("\n".join(lines))
    is_spot = run.spec.workers.capacity.prefer is Capacity.SPOT and not is_on_demand
    defaults = _defaults(run, image=image, is_spot=is_spot)
    if image_pull_policy is not None:
        defaults["spec"]["containers"][0]["imagePullPolicy"] = image_pull_policy
    if service_account is not None:
        defaults["spec"]["serviceAccountName"] = service_account
    pod = merged(defaults, template)
    queue = {key: value for key, value in (run_labels or {}).items() if key.startswith(_QUEUE_PREFIX)}
    pod = merged(
        pod,
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {
                    **queue,
                    **worker_selector(resource_uid),
                    names.LABEL_RUN: label_value(run.name),
                    names.LABEL_SLOT: str(slot),
                    names.LABEL_ATTEMPT: str(attempt),
                    names.LABEL_GENERATION: str(generation),
                    **_capacity_label(run, is_spot=is_spot),
                },
                "ownerReferences": [
                    {
                        "apiVersion": f"{names.API_GROUP}/{names.API_VERSION}",
                        "kind": names.KIND,
                        "name": run.name,
                        "uid": resource_uid,
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": names.CONTAINER_WORKER, "env": _env(settings_json)}],
            },
        },
    )
    if memory_bytes is not None:
        _limit_memory(pod["spec"], memory_bytes)
    if avoid_nodes:
        pod["metadata"]["annotations"][names.ANNOTATION_AVOIDS] = " ".join(avoid_nodes)
    _constrain(pod["spec"], run, is_spot=is_spot, avoid_nodes=avoid_nodes)
    return pod


def _capacity_label(run: InferenceRun, *, is_spot: bool) -> dict[str, str]:
    if run.spec.workers.capacity.prefer is not Capacity.SPOT:
        return {}
    return {names.LABEL_CAPACITY: names.CAPACITY_SPOT if is_spot else names.CAPACITY_ON_DEMAND}


def _defaults(run: InferenceRun, *, image: str, is_spot: bool) -> dict[str, Any]:
    workers = run.spec.workers
    # In the node's network a named port is one of the node: a second worker would not be placed beside the first.
    serves_metrics = not (workers.template.get("spec") or {}).get("hostNetwork")
    return {
        "metadata": {
            "labels": {"app.kubernetes.io/name": "inferencerun", "app.kubernetes.io/component": "worker"},
            "annotations": {
                "kubectl.kubernetes.io/default-container": names.CONTAINER_WORKER,
                # Consolidation moves pods to save a node: here it would throw work away, most of all in a run's tail.
                "karpenter.sh/do-not-disrupt": "true",
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            },
        },
        "spec": {
            "terminationGracePeriodSeconds": grace_period_s(run),
            # A worker talks to its store alone.
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "tolerations": _tolerations(run, is_spot=is_spot),
            "containers": [
                {
                    "name": names.CONTAINER_WORKER,
                    "image": image,
                    "env": [
                        {"name": "HOME", "value": "/tmp"},  # noqa: S108  (in the pod)
                        {"name": names.ENV_CACHE_DIR, "value": _CACHE},
                        *([{"name": names.ENV_METRICS_PORT, "value": str(METRICS_PORT)}] if serves_metrics else []),
                        # Cores that it may use: without a limit those of the node. torch would count the node's, and a
                        # container above its limit stands still for most of each period.
                        {"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    ],
                    **(
                        {"ports": [{"name": names.PORT_METRICS, "containerPort": METRICS_PORT}]}
                        if serves_metrics
                        else {}
                    ),
                    "resources": _resources(workers.gpu_resource, workers.gpus_per_worker),
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    # A worker that dies before its flight recorder runs (an import fails) leaves its last log lines.
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": [
                        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (in the pod)
                        {"name": "cache", "mountPath": _CACHE},
                        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  (in the pod)
                    ],
                }
            ],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                # A template may put a claim or a host path under this name: weights are then fetched once per node.
                {"name": "cache", "emptyDir": {}},
                # A container runtime gives 64 MiB; torch dies of SIGBUS where it needs more.
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _SHM_SIZE}},
            ],
        },
    }


def _resources(gpu_resource: str, num_gpus: int) -> dict[str, Any]:
    """Small requests, so that a pod is placed with some sense and is not the first to be evicted; limits are the user's."""
    resources: dict[str, Any] = {"requests": {"cpu": "500m", "memory": "1Gi"}}
    if num_gpus:
        # An extended resource's request must equal its limit.
        resources["requests"][gpu_resource] = str(num_gpus)
        resources["limits"] = {gpu_resource: str(num_gpus)}
    return resources


def _tolerations(run: InferenceRun, *, is_spot: bool) -> list[dict[str, Any]]:
    workers = run.spec.workers
    tolerations: list[dict[str, Any]] = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_TOLERATION_S,
        }
        for state in ("not-ready", "unreachable")
    ]
    if workers.gpus_per_worker:
        tolerations.append({"key": workers.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    if is_spot:
        tolerations += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value in _SPOT_TAINTS.get(workers.capacity.provider, ())
        ]
    return tolerations


def _env(settings_json: str) -> list[dict[str, Any]]:
    return [
        # The kubelet expands $(NAME) in values, and reads $$ as $; the JSON must arrive as it is.
        {"name": names.ENV_SETTINGS, "value": settings_json.replace("$", "$$")},
        *(
            {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for variable, path in (
                (names.ENV_POD_NAME, "metadata.name"),
                (names.ENV_POD_UID, "metadata.uid"),
                (names.ENV_NODE_NAME, "spec.nodeName"),
            )
        ),
    ]


def _limit_memory(spec: dict[str, Any], memory_bytes: int) -> None:
    """Raise the worker's memory limit, and its request where both are the same: it stays in its quality-of-service class."""
    worker = next(item for item in spec["containers"] if item["name"] == names.CONTAINER_WORKER)
    limits, requests = worker["resources"]["limits"], worker["resources"].get("requests") or {}
    if parse_quantity(str(limits["memory"])) == memory_bytes:
        return
    if parse_quantity(str(requests.get("memory"))) == parse_quantity(str(limits["memory"])):
        requests["memory"] = str(memory_bytes)
    limits["memory"] = str(memory_bytes)


def _constrain(spec: dict[str, Any], run: InferenceRun, *, is_spot: bool, avoid_nodes: Sequence[str]) -> None:
    """Add capacity and nodes to avoid to `spec`, on top of the node affinity that the template asks for.

    Nodes are named by metadata.name, since the label kubernetes.io/hostname need not be the same. Karpenter launches no
    node for a pod with a field selector, nor for one that *requires* anything of that label; so there the nodes are kept
    away from by preference only. https://github.com/kubernetes-sigs/karpenter/issues/3214
    """
    provider = run.spec.workers.capacity.provider
    expressions: list[dict[str, Any]] = []
    if provider in _SPOT_LABELS:
        key, value = _SPOT_LABELS[provider]
        expressions.append({"key": key, "operator": "In" if is_spot else "NotIn", "values": [value]})
    if provider in _ALSO_TAKEN_AWAY and not is_spot:
        key, value = _ALSO_TAKEN_AWAY[provider]
        expressions.append({"key": key, "operator": "NotIn", "values": [value]})
    # A field selector takes one value at a time.
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in avoid_nodes]
    if fields and provider is Provider.KARPENTER:
        fields = []
        avoid = {"key": _HOSTNAME, "operator": "NotIn", "values": list(avoid_nodes)}
        affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
        preference = {"weight": 100, "preference": {"matchExpressions": [avoid]}}
        affinity[_PREFERRED] = [*(affinity.get(_PREFERRED) or []), preference]
    if expressions or fields:
        affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
        selector = affinity.setdefault(_REQUIRED, {})
        # Terms are alternatives: each must say it.
        selector["nodeSelectorTerms"] = [
            _narrowed(_narrowed(term, "matchExpressions", expressions), "matchFields", fields)
            for term in selector.get("nodeSelectorTerms") or [{}]
        ]


def _narrowed(term: Mapping[str, Any], part: str, requirements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {**term, part: [*(term.get(part) or []), *requirements]} if requirements else dict(term)
