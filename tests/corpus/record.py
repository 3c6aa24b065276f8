"""Records the deaths that a cluster of this machine can produce: tests/corpus/recorded-*.yaml.

    python -m tests.corpus.record [NAME ...]        all of them takes about four minutes; needs root

Each scenario makes a pod, has something happen to it, and waits until the API shows it. What is kept is the last version
that the watch has shown, and the node, less what differs from run to run (names, ids, addresses, instants) or says nothing
about a death. What it must be judged as is said here, by hand, and compared at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import yaml
from kubernetes.client.exceptions import ApiException
from kubernetes.watch import Watch
from urllib3.exceptions import HTTPError

from contract import names
from contract.flight import to_text
from tests import make
from tests.cluster.cluster import GPU_RESOURCE, Cluster
from tests.cluster.images import BASE_IMAGE, base_archive
from tests.cluster.processes import wait_until
from tests.corpus.corpus import FOLDER, RUN_UID, Case, load, seen, verdict

NAMESPACE = "recording"
RECORDER = "tests/corpus/record.py"
FIRST_INSTANT = datetime(2026, 1, 1, 12, tzinfo=UTC)
BATCH = to_text(make.flight(10, 20, has_committed=True))
SAY_BATCH = f"printf %s '{BATCH}' > /dev/termination-log; "
DRAINING = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit({code})); print('up'); time.sleep(600)"
)
STAYS = "echo up; sleep 600"
TAKES_NO_NOTICE = "echo up; while true; do sleep 1; done"
FILLS = "head -c 50000000 /dev/zero > {}/full; sleep 600"
TOO_LARGE = "bytearray(300 << 20)"
LITTLE_MEMORY = {"resources": {"limits": {"memory": "64Mi"}}}

Object = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One death."""

    name: str
    what: str
    expected: Mapping[str, Any]
    script: str = "sleep 600"
    """What the worker's container runs."""
    container: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    shard: str | None = None
    act: Callable[[Stage, str], None] | None = None
    """Done once the worker's program has begun; gets the pod's name."""
    is_shown: Callable[[Object], bool] = lambda pod: pod["status"].get("phase") in {"Failed", "Succeeded"}
    """Whether a version of the pod is the one to keep; the last such is."""
    is_gone: bool = False
    """Keep the last version, once the object has gone."""
    is_node_gone: bool = False
    harms_node: bool = False
    """What happens to the node would happen to all other pods on it: comes last, and alone."""


class Stage:
    """A cluster, a namespace in it, and every version of every pod that its watch has shown."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.versions: dict[str, list[Object]] = {}
        self.gone: set[str] = set()
        self._is_over = threading.Event()
        self._watch = Watch()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def __enter__(self) -> Self:
        core = self.cluster.core
        core.create_namespace({"metadata": {"name": NAMESPACE}})  # type: ignore[arg-type]  # the client takes JSON as well
        wait_until(lambda: self.cluster.takes_pods(NAMESPACE), "the namespace to take pods", 30)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._watch.stop()

    def _follow(self) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(ApiException, HTTPError, OSError):
                for event in self._watch.stream(self.cluster.core.list_namespaced_pod, NAMESPACE, timeout_seconds=900):
                    pod = event["raw_object"]
                    self.versions.setdefault(pod["metadata"]["name"], []).append(pod)
                    if event["type"] == "DELETED":
                        self.gone.add(pod["metadata"]["name"])

    def make(self, scenario: Scenario) -> None:
        """The pod of a scenario."""
        self.cluster.core.create_namespaced_pod(NAMESPACE, body(scenario))  # type: ignore[arg-type]

    def shown(self, scenario: Scenario) -> Object | None:
        """The version to keep, None while it has not been shown."""
        versions = self.versions.get(scenario.name, [])
        if scenario.is_gone:
            return versions[-1] if scenario.name in self.gone else None
        return next((pod for pod in reversed(versions) if scenario.is_shown(pod)), None)

    def wait_running(self, name: str) -> None:
        """Until the program of the worker's container has begun (it says so, where that matters)."""

        def is_up() -> bool:
            states = [item["state"] for pod in self.versions.get(name, [])[-1:] for item in statuses(pod)]
            with contextlib.suppress(ApiException):
                log = self.cluster.core.read_namespaced_pod_log(name, NAMESPACE, container=names.CONTAINER_WORKER)
                return any("running" in state for state in states) and "up" in log
            return False

        wait_until(is_up, f"{name} to run", 90)

    def delete(self, name: str) -> None:
        """As kubectl delete."""
        self.cluster.core.delete_namespaced_pod(name, NAMESPACE)

    def evict(self, name: str) -> None:
        """Through the Eviction API, in the version that the server has."""
        version = "policy/v1" if self.minor >= 22 else "policy/v1beta1"
        body = {"apiVersion": version, "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
        self.cluster.core.create_namespaced_pod_eviction(name, NAMESPACE, body)  # type: ignore[arg-type]

    def kill_program(self, name: str) -> None:
        """SIGKILL from outside, as another program or a person on the node would send."""
        mark = f"mark={name}".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and mark in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)

    def take_out(self, name: str) -> None:
        """Give the pod's node a taint that it does not tolerate."""
        self.cluster.taint(self.node_of(name), [{"key": "maintenance", "effect": "NoExecute"}])

    def lose_node(self, name: str) -> None:
        """End every process of the pod's node."""
        self.cluster.kill_node(self.node_of(name))

    def remove_node(self, name: str) -> None:
        """The same, and its Node object goes."""
        self.cluster.remove_node(self.node_of(name))

    def node_of(self, name: str) -> str:
        """Where the pod was placed."""
        found: str = self.versions[name][-1]["spec"]["nodeName"]
        return found

    @property
    def version(self) -> str:
        """Of the kubelets, as they say it: v1.20.2."""
        nodes = self.cluster.plain(self.cluster.core.list_node())["items"]
        found: str = nodes[0]["status"]["nodeInfo"]["kubeletVersion"]
        return found

    @property
    def minor(self) -> int:
        """1.20 -> 20."""
        return int(self.version.split(".")[1])


def statuses(pod: Object) -> list[Object]:
    """Of the worker's container, none before it is made."""
    found = pod["status"].get("containerStatuses", [])
    return [item for item in found if item["name"] == names.CONTAINER_WORKER]


def kinds_of_state(pod: Object) -> set[str]:
    """What its containers do: wait, run, or have ended."""
    return {kind for item in pod["status"].get("containerStatuses", []) for kind in item["state"]}


def waits(*reasons: str, kind: str = "containerStatuses") -> Callable[[Object], bool]:
    """Whether a container waits for one of these reasons."""
    return lambda pod: any(
        item["state"].get("waiting", {}).get("reason") in reasons for item in pod["status"].get(kind, [])
    )


def has_ended_deleted(pod: Object) -> bool:
    """Whether a deleted pod's container has ended."""
    return "deletionTimestamp" in pod["metadata"] and any("terminated" in item["state"] for item in statuses(pod))


def death(failure_class: str, charged_to: str, **more: Any) -> dict[str, Any]:
    """What an end must be judged as."""
    return {"state": "ended", "class": failure_class, "chargedTo": charged_to, **more}


FREE = death("SpotEviction", "nobody")
REJECTED = death("NodeRejected", "node", nodeScore=1)
BROKEN = death("Configuration", "run", isPermanent=True)
RETRIED = death("Transient", "shard")


def container(name: str, *command: str, **more: Any) -> Object:
    """One of the image that every node has."""
    return {"name": name, "image": BASE_IMAGE, "imagePullPolicy": "Never", "command": list(command), **more}


def init(*command: str, **more: Any) -> Object:
    """The spec of a pod with an init container."""
    return {"initContainers": [container("fetch", *command, **more)]}


def beside(*command: str) -> Object:
    """The spec of a pod with a sidecar."""
    return {"containers": [container("proxy", *command)]}


def on(node: str) -> Object:
    """The spec of a pod for one node."""
    return {"nodeSelector": {"kubernetes.io/hostname": node}}


def scenarios(first: str, second: str, third: str) -> tuple[Scenario, ...]:
    """All of them; `second` and `third` are lost at the end."""
    drains = f'exec python3 -uc "{DRAINING.format(code=143)}"'
    secret = {"secretKeyRef": {"name": "store-credentials", "key": "password"}}
    return (
        Scenario(
            name="oom-killed",
            what="A real container goes over its memory limit with a batch in flight",
            script=SAY_BATCH + f'exec python3 -c "{TOO_LARGE}"',
            container=LITTLE_MEMORY,
            shard="held",
            expected=death("OutOfMemory", "shard"),
        ),
        Scenario(
            name="segmentation-fault",
            what="A real program reads where it must not, with a batch in flight",
            script=SAY_BATCH + 'exec python3 -c "import ctypes; ctypes.string_at(0)"',
            shard="held",
            expected=death("PoisonInput", "records"),
        ),
        Scenario(
            name="abort",
            what="A real program aborts, with a batch in flight",
            script=SAY_BATCH + 'python3 -c "import os; os.abort()"; exit $?',
            shard="held",
            expected=death("PoisonInput", "records"),
        ),
        Scenario(
            name="sigkill",
            what="Somebody on the node sends SIGKILL to the worker",
            script=SAY_BATCH + TAKES_NO_NOTICE + " # mark=sigkill",
            act=Stage.kill_program,
            shard="held",
            expected=death("NodeLost", "nobody"),
        ),
        Scenario(
            name="exception",
            what="A real program raises; the message is the end of its log",
            script="exec python3 -c \"raise KeyError('layer.0.weight')\"",
            container={"terminationMessagePolicy": "FallbackToLogsOnError"},
            shard="held",
            expected=RETRIED,
        ),
        Scenario(
            name="exit-64",
            what="A worker refuses its spec, in its last words",
            script=f"printf %s '{to_text(make.flight(shard=None, exit_code=64, detail='maxLength: 0'))}'"
            " > /dev/termination-log; exit 64",
            expected=BROKEN,
        ),
        Scenario(
            name="completed",
            what="A worker has found no more work",
            script=f"printf %s '{to_text(make.flight(shard=None, exit_code=0))}' > /dev/termination-log",
            expected=death("Done", "nobody"),
        ),
        Scenario(
            name="completed-without-words",
            what="A command that is no worker ends with 0",
            script="true",
            expected=RETRIED,
        ),
        Scenario(
            name="evicted",
            what="The Eviction API, and a worker that drains",
            script=drains,
            act=Stage.evict,
            is_shown=has_ended_deleted,
            expected=FREE,
        ),
        Scenario(
            name="deleted-and-killed",
            what="A pod is deleted, and its program takes no notice of SIGTERM",
            script=SAY_BATCH + TAKES_NO_NOTICE,
            act=Stage.delete,
            is_shown=has_ended_deleted,
            shard="held",
            expected=FREE,
        ),
        Scenario(
            name="deleted-exit-0",
            what="A pod is deleted, and its program takes SIGTERM for a reason to end with 0",
            script=f'exec python3 -uc "{DRAINING.format(code=0)}"',
            act=Stage.delete,
            is_shown=has_ended_deleted,
            shard="held",
            expected=FREE,
        ),
        Scenario(
            name="deleted-and-gone",
            what="A pod was deleted and is gone; the last version says how it ended",
            script=drains,
            act=Stage.delete,
            is_gone=True,
            expected=FREE,
        ),
        Scenario(
            name="image-never-pull",
            what="A real image is not on the node, and imagePullPolicy is Never",
            container={"image": "inferencerun.test/missing:1"},
            is_shown=waits("ErrImageNeverPull"),
            expected=BROKEN,
        ),
        Scenario(
            name="image-name-invalid",
            what="A real image name that is none",
            container={"image": "Inferencerun.test/Worker:", "imagePullPolicy": "Always"},
            is_shown=waits("InvalidImageName"),
            expected=BROKEN,
        ),
        Scenario(
            name="registry-unreachable",
            what="A registry that does not listen",
            container={"image": "127.0.0.1:9/inferencerun/worker:1", "imagePullPolicy": "Always"},
            is_shown=waits("ErrImagePull"),
            expected=death("ImagePull", "run"),
        ),
        Scenario(
            name="pull-back-off",
            what="The kubelet waits before it asks a registry again that does not listen",
            container={"image": "127.0.0.1:9/inferencerun/worker:2", "imagePullPolicy": "Always"},
            is_shown=waits("ImagePullBackOff"),
            expected=death("ImagePull", "run"),
        ),
        Scenario(
            name="missing-secret",
            what="A variable comes from a Secret that is not there",
            container={"env": [{"name": "PASSWORD", "valueFrom": secret}]},
            is_shown=waits("CreateContainerConfigError"),
            expected=BROKEN,
        ),
        Scenario(
            name="missing-config-map",
            what="Variables come from a ConfigMap that is not there",
            container={"envFrom": [{"configMapRef": {"name": "settings"}}]},
            is_shown=waits("CreateContainerConfigError"),
            expected=BROKEN,
        ),
        Scenario(
            name="run-as-root",
            what="An image that runs as root, in a pod that must not",
            container={"securityContext": {"runAsNonRoot": True}},
            is_shown=waits("CreateContainerConfigError"),
            expected=BROKEN,
        ),
        Scenario(
            name="no-such-command",
            what="A command that the image does not have",
            container={"command": ["inferencerunn"]},
            expected=BROKEN,
        ),
        Scenario(
            name="out-of-cpu",
            what="A pod that was placed past the scheduler on a node without enough CPU",
            container={"resources": {"requests": {"cpu": "1000"}}},
            spec={"nodeName": first},
            expected=REJECTED,
        ),
        Scenario(
            name="out-of-gpus",
            what="A pod that was placed past the scheduler on a node without enough GPUs",
            container={"resources": {"limits": {GPU_RESOURCE: "2"}}},
            spec={"nodeName": first},
            expected=REJECTED,
        ),
        Scenario(
            name="node-affinity",
            what="A pod that was placed past the scheduler on a node without its label",
            spec={"nodeName": first, "nodeSelector": {"accelerator": "h100"}},
            expected=REJECTED,
        ),
        Scenario(
            name="deadline",
            what="The template's activeDeadlineSeconds is over, on a real kubelet",
            script=drains,
            spec={"activeDeadlineSeconds": 3},
            shard="held",
            expected=RETRIED,
        ),
        Scenario(
            name="init-failed",
            what="A real init container fails",
            spec=init("sh", "-c", "echo no bucket > /dev/termination-log; exit 2"),
            expected=RETRIED,
        ),
        Scenario(
            name="init-oom-killed",
            what="A real init container goes over its memory limit",
            spec=init("python3", "-c", TOO_LARGE, **LITTLE_MEMORY),
            expected=death("OutOfMemory", "shard"),
        ),
        Scenario(
            name="sidecar-runs-on",
            what="The worker has failed while its sidecar runs on",
            script="exit 75",
            spec=beside("sleep", "600"),
            is_shown=lambda pod: any("terminated" in item["state"] for item in statuses(pod)),
            shard="held",
            expected=RETRIED,
        ),
        Scenario(
            name="sidecar-failed",
            what="A sidecar has failed while the worker runs",
            script=STAYS,
            spec=beside("sh", "-c", "exit 3"),
            is_shown=lambda pod: kinds_of_state(pod) == {"running", "terminated"},
            shard="held",
            expected={"state": "running"},
        ),
        Scenario(
            name="unschedulable",
            what="A pod that fits on no node",
            container={"resources": {"limits": {GPU_RESOURCE: "64"}}},
            is_shown=lambda pod: any(
                item.get("reason") == "Unschedulable" for item in pod["status"].get("conditions", [])
            ),
            expected={"state": "starting"},
        ),
        Scenario(
            name="disk-limit",
            what="A container really writes more than its limit of ephemeral storage",
            script=FILLS.format("/tmp"),
            container={"resources": {"limits": {"ephemeral-storage": "1Mi"}}},
            shard="held",
            expected=death("DiskPressure", "shard"),
        ),
        Scenario(
            name="empty-dir-limit",
            what="A real volume grows over its limit",
            script=FILLS.format("/scratch"),
            container={"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]},
            spec={"volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]},
            shard="held",
            expected=death("DiskPressure", "shard"),
        ),
        Scenario(
            name="taint",
            what="A NoExecute taint comes to the pod's node",
            script=drains,
            spec=on(first),
            act=Stage.take_out,
            harms_node=True,
            is_shown=has_ended_deleted,
            expected=FREE,
        ),
        Scenario(
            name="node-killed",
            what="A whole node loses its power: the pod is deleted after the tolerated time, and never ends",
            script=STAYS,
            spec=on(second),
            act=Stage.lose_node,
            harms_node=True,
            is_shown=lambda pod: "deletionTimestamp" in pod["metadata"],
            shard="held",
            expected=death("NodeLost", "node", nodeScore=1),
        ),
        Scenario(
            name="node-removed",
            what="A whole node loses its power, and its Node object is removed: the pod is collected",
            script=STAYS,
            spec=on(third),
            act=Stage.remove_node,
            harms_node=True,
            is_gone=True,
            is_node_gone=True,
            shard="held",
            expected=death("NodeLost", "node", nodeScore=1),
        ),
    )


def body(scenario: Scenario) -> Object:
    """The pod of a scenario."""
    worker = container(names.CONTAINER_WORKER, "sh", "-c", scenario.script) | dict(scenario.container)
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, **scenario.spec}
    return {
        "metadata": {"name": scenario.name},
        "spec": {**spec, "containers": [worker, *scenario.spec.get("containers", ())]},
    }


def record(stage: Stage, wanted: tuple[Scenario, ...]) -> Iterator[tuple[Scenario, Object, Object | None]]:
    """Make everything happen; yields scenario, pod and node."""
    early = tuple(one for one in wanted if not one.harms_node)
    for together in (early, *((one,) for one in wanted if one.harms_node)):
        for scenario in together:
            stage.make(scenario)
        nodes = [harmed(stage, scenario) for scenario in together]
        for scenario, node in zip(together, nodes, strict=True):
            yield (scenario, *kept(stage, scenario, node))


def harmed(stage: Stage, scenario: Scenario) -> Object | None:
    """Have happen to the pod what is to happen to it; returns its node as it was before, None when nothing is."""
    if scenario.act is None:
        return None
    stage.wait_running(scenario.name)
    before = node_object(stage, stage.node_of(scenario.name))
    scenario.act(stage, scenario.name)
    return before


def kept(stage: Stage, scenario: Scenario, before: Object | None) -> tuple[Object, Object | None]:
    """The version of the pod to keep, and its node at that time (before, where the node has gone)."""
    wait_until(lambda: stage.shown(scenario) is not None, f"{scenario.name} to be shown", 180)
    pod = stage.shown(scenario)
    assert pod is not None
    name = pod["spec"].get("nodeName")
    return pod, before if scenario.is_node_gone else node_object(stage, name) if name else None


def node_object(stage: Stage, name: str) -> Object:
    """The node, as the API has it."""
    return stage.cluster.plain(stage.cluster.core.read_node(name))


SPEC_KEPT = (
    "activeDeadlineSeconds", "containers", "initContainers", "nodeName", "nodeSelector", "priority", "restartPolicy",
    "terminationGracePeriodSeconds", "volumes",
)  # fmt: skip
CONTAINER_KEPT = ("command", "env", "envFrom", "image", "imagePullPolicy", "name", "resources", "securityContext")
STATUS_KEPT = (
    "conditions", "containerStatuses", "initContainerStatuses", "message", "phase", "qosClass", "reason", "startTime",
)  # fmt: skip


def scrubbed_pod(pod: Object) -> Object:
    """The pod, less what differs each time or says nothing about a death."""
    metadata = {
        "name": "run-0-1",
        "namespace": "default",
        "uid": "0a7d8c1e-6f0b-4d0e-8a53-2f1f3f6d9b01",
        "resourceVersion": "48213",
        "labels": {
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
            names.LABEL_RUN: "run",
            names.LABEL_RUN_UID: RUN_UID,
            names.LABEL_SLOT: "0",
            names.LABEL_ATTEMPT: "1",
            names.LABEL_GENERATION: "1",
        },
    }
    times = ("creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp")
    metadata |= {key: pod["metadata"][key] for key in times if key in pod["metadata"]}
    spec = {key: pod["spec"][key] for key in SPEC_KEPT if key in pod["spec"]}
    for kind in ("containers", "initContainers"):
        if kind in spec:
            spec[kind] = [
                {key: item[key] for key in CONTAINER_KEPT if item.get(key) not in (None, {}, [])} for item in spec[kind]
            ]
    spec["volumes"] = [item for item in spec.get("volumes", []) if "emptyDir" in item]
    status = {key: pod["status"][key] for key in STATUS_KEPT if key in pod["status"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {key: value for key, value in spec.items() if value},
        "status": status,
    }


def scrubbed_node(node: Object) -> Object:
    """The node, likewise."""
    status = node["status"]
    wanted = ("cpu", GPU_RESOURCE)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "node-a",
            "uid": "c2d1c1a4-5b0e-4f1f-9e7e-6d2b6a1e7f02",
            "resourceVersion": "48200",
            "labels": node["metadata"].get("labels", {}),
        },
        "spec": {key: node["spec"][key] for key in ("taints", "unschedulable") if key in node["spec"]},
        "status": {
            "allocatable": {key: status["allocatable"][key] for key in wanted if key in status["allocatable"]},
            "conditions": [
                {key: value for key, value in item.items() if not key.startswith("last")}
                for item in status["conditions"]
            ],
            "nodeInfo": {"kubeletVersion": status["nodeInfo"]["kubeletVersion"]},
        },
    }


_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_VOLATILE = (
    (re.compile(r"containerd://[0-9a-f]{64}"), "containerd://9f1c6d0b7a"),
    (re.compile(r"sha256:[0-9a-f]{64}"), f"sha256:{'ab' * 32}"),
    (re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"), "0a7d8c1e-6f0b-4d0e-8a53-2f1f3f6d9b01"),
    (re.compile(rf"_?\b{NAMESPACE}\b"), lambda match: match[0].replace(NAMESPACE, "default")),
    (re.compile(r"(?<=127\.0\.0\.1:)\d{5}"), "40000"),
)


def scrubbed(found: Any, replaced: Mapping[str, str]) -> Any:
    """The same with instants in steps of ten seconds, in their order, and without ids and names of this recording."""
    text = json.dumps(found).replace("+00:00", "Z")  # the client writes a node's instants anew
    instants = sorted(set(_INSTANT.findall(text)))
    # The flight recorder's fields are text inside the text; no instant is among them.
    for number, instant in enumerate(item for item in instants if not item.startswith("1970")):
        shifted = FIRST_INSTANT + timedelta(seconds=10 * number)
        text = text.replace(instant, f"{shifted:%Y-%m-%dT%H:%M:%SZ}")
    loaded = json.loads(text)
    return _texts(loaded, replaced)


def _texts(found: Any, replaced: Mapping[str, str]) -> Any:
    if isinstance(found, dict):
        return {
            key: value if key in {"uid", names.LABEL_RUN_UID} else _texts(value, replaced)
            for key, value in found.items()
        }
    if isinstance(found, list):
        return [_texts(item, replaced) for item in found]
    if not isinstance(found, str):
        return found
    for pattern, instead in _VOLATILE:
        found = pattern.sub(instead, found)
    for name, instead in replaced.items():
        found = re.sub(rf"\b{re.escape(name)}\b", instead, found)
    return found


def write(scenario: Scenario, pod: Object, node: Object | None, version: str) -> Case:
    """The file of a scenario, and what it holds."""
    path = FOLDER / f"recorded-{scenario.name}.yaml"
    objects: Object = {"pod": scrubbed_pod(pod)} | ({"node": scrubbed_node(node)} if node else {})
    replaced = {pod["spec"]["nodeName"]: "node-a"} if "nodeName" in pod["spec"] else {}
    objects = scrubbed(objects, replaced)
    content = {
        "what": scenario.what,
        "source": f"recorded from Kubernetes {version.removeprefix('v')} by {RECORDER}",
        "tests": [f"{RECORDER}::record"],
        "expected": dict(scenario.expected),
        **({"shard": scenario.shard} if scenario.shard else {}),
        "seenAt": f"{FIRST_INSTANT + timedelta(minutes=10):%Y-%m-%dT%H:%M:%SZ}",
        **({"isGone": True} if scenario.is_gone else {}),
        "pod": objects["pod"],
        **({"node": objects["node"]} if "node" in objects else {}),
        **({"isNodeGone": True} if scenario.is_node_gone else {}),
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True))
    return load(path)


def main(wanted: list[str]) -> int:
    """Record what is wanted, or everything; 1 when something is not judged as it must be."""
    wrong = []
    with (
        tempfile.TemporaryDirectory(prefix="recording-") as directory,
        Cluster(Path(directory, "cluster"), 3) as cluster,
    ):
        cluster.load_image(base_archive())
        nodes = cluster.node_names()
        cluster.set_gpus(nodes[0], 1)
        chosen = tuple(one for one in scenarios(*nodes) if not wanted or one.name in wanted)
        with Stage(cluster) as stage:
            version = stage.version
            for scenario, pod, node in record(stage, chosen):
                case = write(scenario, pod, node, version)
                worker = seen(case)
                found = verdict(case, worker)
                print(f"{scenario.name}: {found.failure_class if found else worker.state}")  # noqa: T201
                is_right = (found and found.failure_class) == case.expected.failure_class
                wrong += [] if is_right else [scenario.name]
    if wrong:
        print(f"not judged as said: {', '.join(wrong)}", file=sys.stderr)  # noqa: T201
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
