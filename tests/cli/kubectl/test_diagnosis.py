"""Tests of `diagnose`: for each thing that can be wrong the facts that show it, the sentence, and what mends it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cli.kubectl.diagnosis.diagnose import diagnose
from cli.kubectl.diagnosis.finding import Finding, Severity
from cli.kubectl.facts import (
    Condition,
    ControllerPod,
    Definition,
    Deployment,
    Event,
    Facts,
    Failure,
    HeldShard,
    Lease,
    Node,
    Pod,
    Run,
    Silence,
    Store,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ALIVE = Lease(namespace="op", name="inferencerun-operator", holder="ctl-0", renewed_at=NOW, duration_s=15)
GPU_NODE = Node(name="node-a", allocatable={"nvidia.com/gpu": "4"}, labels={"pool": "gpu"})
OPERATOR = Deployment(namespace="op", name="inferencerun-operator", wanted=2, ready=0)


def ago(seconds: float) -> datetime:
    """An instant before NOW."""
    return NOW - timedelta(seconds=seconds)


def make_run(**changes: Any) -> Run:
    """A run at work, two hours old, of which all is well."""
    ordinary = Run(
        name="swissprot",
        namespace="proteins",
        created_at=ago(7200),
        output_uri="s3://bucket/out",
        observed_generation=1,
        count=2,
        phase="Running",
        desired=2,
        active=2,
        ready=2,
        num_shards=8,
        goodput=0.9,
    )
    return replace(ordinary, **changes)


def make_facts(run: Run | None = None, **changes: Any) -> Facts:
    """Facts of which nothing is wrong, but for the changes."""
    ordinary = Facts(
        now=NOW,
        definition=Definition(),
        leases=(ALIVE,),
        deployments=(replace(OPERATOR, ready=2),),
        run=run or make_run(),
        pods=(make_pod(),),
        nodes=(GPU_NODE,),
        events=(),
        store=Store(),
    )
    return replace(ordinary, **changes)


def make_pod(**changes: Any) -> Pod:
    """A worker that runs."""
    return replace(
        Pod(name="swissprot-0-0", created_at=ago(600), uid="uid", node="node-a", is_running=True, image="worker:1"),
        **changes,
    )


def unplaced(message: str, **changes: Any) -> Pod:
    """A worker that the scheduler finds no node for."""
    return make_pod(node="", is_running=False, is_refused_by_scheduler=True, scheduler_message=message, **changes)


def waiting(reason: str, message: str = "", **changes: Any) -> Pod:
    """A worker whose container does not start."""
    return make_pod(is_running=False, waiting_reason=reason, waiting_message=message, **changes)


def refusal(message: str) -> Event:
    """What the controller says when it cannot create a pod."""
    return Event(of="swissprot", reason="FailedCreate", message=f"pod x cannot be created: {message}", at=ago(30))


def condition(kind: str, status: str, reason: str, message: str = "why") -> dict[str, Condition]:
    """One condition."""
    return {kind: Condition(status=status, reason=reason, message=message, at=ago(60))}


def failure(kind: str = "OutOfMemory", at: datetime | None = None) -> Failure:
    """One of the last failures."""
    return Failure(
        at=at or ago(60),
        pod="swissprot-1-3",
        node="node-b",
        failure_class=kind,
        evidence="OOMKilled",
        advice="more memory",
    )


IDLE = make_run(active=0, ready=0)
HALF = make_run(active=1, ready=1)
UNCLAIMED = make_run(idle={"uid": ago(40)})
SILENCE = Silence(
    pod="swissprot-0-0",
    store="s3://bucket/out",
    endpoint="https://bucket.s3.amazonaws.com",
    silent_s=22,
    detail="plan.json: connect timeout",
)
CONTROLLER = ControllerPod(namespace="op", name="ctl-0", image="controller:1")

CASES: dict[str, tuple[Facts, str, Severity, str]] = {
    "definition missing": (
        Facts(now=NOW, definition=Definition(is_served=False)),
        "NotInstalled",
        Severity.STOPS,
        "helm upgrade --install",
    ),
    "definition old": (
        make_facts(definition=Definition(missing=frozenset({"spec.checkpoint"}))),
        "DefinitionOld",
        Severity.HINDERS,
        "spec.checkpoint",
    ),
    "no lease": (make_facts(leases=()), "ControllerDown", Severity.STOPS, "no Lease of a controller exists"),
    "lease old": (
        make_facts(leases=(replace(ALIVE, renewed_at=ago(600)),), deployments=(OPERATOR,)),
        "ControllerDown",
        Severity.STOPS,
        "Lease op/inferencerun-operator of ctl-0 was renewed 10 min 00 s ago; Deployment op/inferencerun-operator: 0 of 2",
    ),
    "lease given up": (
        make_facts(leases=(replace(ALIVE, holder=""),), deployments=(replace(OPERATOR, wanted=0),)),
        "ControllerDown",
        Severity.STOPS,
        "kubectl scale -n op deployment/inferencerun-operator --replicas 2",
    ),
    "lease not to be seen": (
        make_facts(make_run(observed_generation=None), leases=None, deployments=None),
        "NobodyLooks",
        Severity.STOPS,
        "its status is empty",
    ),
    "controller of another namespace": (
        make_facts(make_run(observed_generation=None)),
        "ControllerBlind",
        Severity.STOPS,
        "controller.watchNamespace",
    ),
    "controller fails": (
        make_facts(make_run(conditions=condition("Progressing", "Unknown", "ControllerError", "KeyError('x')"))),
        "ControllerError",
        Severity.STOPS,
        "KeyError: x",
    ),
    "rights": (
        make_facts(denied=("patch inferenceruns",)),
        "YouMayNot",
        Severity.NOTE,
        "you may not patch inferenceruns",
    ),
    "spec refused": (
        make_facts(make_run(conditions=condition("Accepted", "False", "Invalid", "spec.x: 1 cannot be used"))),
        "NotAcceptedInvalid",
        Severity.STOPS,
        "kubectl edit irun swissprot -n proteins",
    ),
    "input that the controller cannot list": (
        make_facts(
            make_run(
                num_shards=0, conditions=condition("Accepted", "False", "SpecError", "input.uris: names no object")
            ),
            store=Store(input_problem="input.uris: names no object"),
        ),
        "NotAcceptedSpecError",
        Severity.STOPS,
        "kubectl edit irun swissprot -n proteins   # correct spec.input",
    ),
    "input that is gone": (
        make_facts(make_run(conditions=condition("Accepted", "False", "SpecError", "input.uris: names no object"))),
        "NotAcceptedSpecError",
        Severity.STOPS,
        "put the objects there",
    ),
    "output in use, before anything is planned": (
        make_facts(
            make_run(num_shards=0, conditions=condition("Accepted", "False", "OutputInUse", "run a/b works on it"))
        ),
        "NotAcceptedOutputInUse",
        Severity.STOPS,
        "kubectl edit irun swissprot -n proteins   # another spec.output.uri",
    ),
    "another run's output": (
        make_facts(
            make_run(num_shards=0, conditions=condition("Accepted", "False", "IncompatibleRun", "another input"))
        ),
        "NotAcceptedIncompatibleRun",
        Severity.STOPS,
        "kubectl edit irun swissprot -n proteins   # another spec.output.uri, or spec.resume: Restart",
    ),
    "a run that has become another": (
        make_facts(make_run(conditions=condition("Accepted", "False", "IncompatibleRun", "another model"))),
        "NotAcceptedIncompatibleRun",
        Severity.STOPS,
        "# what was changed back to what it was, or spec.resume: Restart",
    ),
    "identity changed": (
        make_facts(make_run(conditions=condition("Accepted", "False", "Immutable", "spec.output.uri: cannot change"))),
        "NotAcceptedImmutable",
        Severity.STOPS,
        "kubectl get irun swissprot -n proteins -o yaml   #",
    ),
    "a path for an output": (
        make_facts(
            make_run(num_shards=0, conditions=condition("Accepted", "False", "PathUnusable", "/data: read-only")),
            store=Store(problem="/data is a path in the worker pods", is_in_pods=True),
        ),
        "NotAcceptedPathUnusable",
        Severity.STOPS,
        "kubectl edit irun swissprot -n proteins   # spec.output.uri and spec.input.uris in a bucket",
    ),
    "a bucket that does not exist": (
        make_facts(
            make_run(num_shards=0, conditions=condition("Planned", "False", "AccessDenied", "404 NoSuchBucket: in"))
        ),
        "NotPlannedAccessDenied",
        Severity.STOPS,
        "kubectl edit irun swissprot -n proteins   # the bucket in spec.input.uris or spec.output.uri",
    ),
    "output in use": (
        make_facts(make_run(conditions=condition("Accepted", "False", "OutputInUse", "run a/b works on it"))),
        "NotAcceptedOutputInUse",
        Severity.STOPS,
        "wait: it starts by itself once the other run has ended or is deleted",
    ),
    "controller's store": (
        make_facts(make_run(conditions=condition("Planned", "False", "AccessDenied", "403"))),
        "NotPlannedAccessDenied",
        Severity.STOPS,
        "controller.serviceAccount.annotations",
    ),
    "deleting": (make_facts(make_run(is_deleting=True)), "Deleting", Severity.STOPS, "1 pod(s) have drained"),
    "suspended": (
        make_facts(make_run(is_suspended=True)),
        "Suspended",
        Severity.STOPS,
        "kubectl inferencerun resume swissprot -n proteins",
    ),
    "store unsuitable": (
        make_facts(store=Store(problem="a stale ETag", is_unsuitable=True)),
        "StoreUnsuitable",
        Severity.STOPS,
        "use another store",
    ),
    "store not seen": (make_facts(store=Store(problem="no credentials")), "StoreUnseen", Severity.NOTE, "AWS_PROFILE"),
    "input missing": (
        make_facts(make_run(num_shards=0), store=Store(input_problem="names no object")),
        "InputMissing",
        Severity.STOPS,
        "correct spec.input: that is accepted",
    ),
    "clock": (make_facts(store=Store(skew_s=-600)), "ClockSkew", Severity.HINDERS, "10 min 00 s behind"),
    "queue": (
        make_facts(
            replace(IDLE, queue="team-a"),
            pods=(make_pod(node="", is_running=False, gates=("kueue.x-k8s.io/admission",)),),
        ),
        "NotAdmitted",
        Severity.STOPS,
        "kubectl describe localqueue team-a -n proteins",
    ),
    "gate": (
        make_facts(IDLE, pods=(make_pod(node="", is_running=False, gates=("mine",)),)),
        "NotAdmitted",
        Severity.STOPS,
        "for a scheduling gate to be lifted",
    ),
    "quota": (
        make_facts(
            HALF, events=(refusal("exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 1, limited: 1"),)
        ),
        "QuotaExceeded",
        Severity.HINDERS,
        "kubectl describe resourcequota gpus -n proteins   # raise it, or\nkubectl inferencerun scale swissprot 1 -n ",
    ),
    "service account": (
        make_facts(
            IDLE,
            events=(refusal('error looking up service account proteins/w: serviceaccount "w" not found'),),
        ),
        "ServiceAccountMissing",
        Severity.STOPS,
        "kubectl create serviceaccount w -n proteins",
    ),
    "limit range": (
        make_facts(IDLE, events=(refusal("maximum memory usage per Container is 1Gi, but limit is 2Gi"),)),
        "LimitRange",
        Severity.STOPS,
        "kubectl describe limitrange -n proteins",
    ),
    "pod security": (
        make_facts(IDLE, events=(refusal('violates PodSecurity "restricted:latest": host namespaces'),)),
        "PodSecurity",
        Severity.STOPS,
        "securityContext",
    ),
    "webhook": (
        make_facts(IDLE, events=(refusal('admission webhook "policy.example.com" denied the request: no'),)),
        "AdmissionRefused",
        Severity.STOPS,
        "follow what webhook policy.example.com says",
    ),
    "controller's rights": (
        make_facts(IDLE, events=(refusal('User "system:serviceaccount:op:ctl" cannot create resource "pods"'),)),
        "ControllerForbidden",
        Severity.STOPS,
        "helm upgrade --install",
    ),
    "name taken": (
        make_facts(replace(IDLE, message="pod x cannot be created: it belongs to somebody else")),
        "NameTaken",
        Severity.STOPS,
        "kubectl get pods -n proteins",
    ),
    "refused otherwise": (
        make_facts(IDLE, events=(refusal("spec.containers[0].image: Required value"),)),
        "PodRefused",
        Severity.STOPS,
        "Required value",
    ),
    "no scheduler": (
        make_facts(IDLE, pods=(make_pod(node="", is_running=False),)),
        "NoScheduler",
        Severity.STOPS,
        "kubectl get pods -n kube-system",
    ),
    "no nodes": (
        make_facts(IDLE, nodes=(), pods=(unplaced("no nodes available to schedule pods"),)),
        "NoNodes",
        Severity.STOPS,
        "the cluster has no node at all",
    ),
    "no GPU nodes": (
        make_facts(
            IDLE, nodes=(Node(name="a"),), pods=(unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),)
        ),
        "NoGpuNodes",
        Severity.STOPS,
        "1 worker waits for a node: no node offers nvidia.com/gpu.",
    ),
    "too many GPUs": (
        make_facts(
            replace(IDLE, gpus_per_worker=8),
            pods=(unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),),
        ),
        "GpusPerWorker",
        Severity.STOPS,
        "a worker wants 8 nvidia.com/gpu, and the largest node offers 4",
    ),
    "all GPUs taken": (
        make_facts(HALF, pods=(make_pod(), unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."))),
        "GpusTaken",
        Severity.HINDERS,
        "kubectl inferencerun scale swissprot 1 -n proteins",
    ),
    "no spot nodes": (
        make_facts(
            replace(IDLE, provider="gke"),
            pods=(
                unplaced(
                    "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
                    required_labels=(("cloud.google.com/gke-spot", "true"),),
                ),
            ),
        ),
        "NoSpotNodes",
        Severity.STOPS,
        "no node has cloud.google.com/gke-spot=true, as spot nodes of gke have",
    ),
    "labels": (
        make_facts(
            IDLE,
            pods=(
                unplaced(
                    "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity.",
                    required_labels=(("pool", "gpu"), ("zone", "b")),
                ),
            ),
        ),
        "LabelsUnmatched",
        Severity.STOPS,
        "no node has zone=b",
    ),
    "labels, nodes not seen": (
        make_facts(IDLE, nodes=None, pods=(unplaced("1 node(s) didn't match node selector"),)),
        "LabelsUnmatched",
        Severity.STOPS,
        "leaves none",
    ),
    "taint": (
        make_facts(
            IDLE,
            pods=(unplaced("0/1 nodes are available: 1 node(s) had taint {gpu: yes}, that the pod didn't tolerate."),),
        ),
        "TaintNotTolerated",
        Severity.STOPS,
        "nodes have gpu: yes, which the workers do not tolerate",
    ),
    "memory": (
        make_facts(IDLE, pods=(unplaced("0/1 nodes are available: 1 Insufficient memory."),)),
        "Insufficient",
        Severity.STOPS,
        "no node has enough memory left",
    ),
    "cordoned": (
        make_facts(
            IDLE,
            nodes=(replace(GPU_NODE, is_cordoned=True),),
            pods=(unplaced("0/1 nodes are available: 1 node(s) were unschedulable."),),
        ),
        "Cordoned",
        Severity.STOPS,
        "kubectl uncordon node-a",
    ),
    "claim": (
        make_facts(IDLE, pods=(unplaced('persistentvolumeclaim "weights" not found'),)),
        "Volume",
        Severity.STOPS,
        "kubectl get pvc -n proteins",
    ),
    "unknown words of the scheduler": (
        make_facts(IDLE, pods=(unplaced("0/1 nodes are available: 1 node(s) are purple."),)),
        "Unschedulable",
        Severity.STOPS,
        "purple",
    ),
    "a node is coming": (
        make_facts(
            IDLE,
            pods=(unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),),
            events=(Event(of="swissprot-0-0", reason="TriggeredScaleUp", message="pool 0->1", at=ago(20)),),
        ),
        "GpusTaken",
        Severity.NOTE,
        "the autoscaler is adding a node: pool 0->1",
    ),
    "no node will come": (
        make_facts(
            IDLE,
            pods=(unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),),
            events=(Event(of="swissprot-0-0", reason="NotTriggerScaleUp", message="max node group size", at=ago(20)),),
        ),
        "GpusTaken",
        Severity.STOPS,
        "autoscaler: max node group size",
    ),
    "image": (
        make_facts(IDLE, pods=(waiting("ImagePullBackOff", "Back-off pulling image"),)),
        "Image",
        Severity.STOPS,
        "imagePullSecrets",
    ),
    "image of waiting pods": (
        make_facts(IDLE, pods=(waiting("ErrImagePull", "no such host"),)),
        "Image",
        Severity.STOPS,
        "kubectl delete pods -n proteins -l inferencerun.dev/run=swissprot --field-selector status.phase=Pending",
    ),
    "image never pulled": (
        make_facts(IDLE, pods=(waiting("ErrImageNeverPull"),)),
        "Image",
        Severity.STOPS,
        "worker.image.pullPolicy",
    ),
    "secret": (
        make_facts(IDLE, pods=(waiting("CreateContainerConfigError", 'secret "store" not found'),)),
        "SecretMissing",
        Severity.STOPS,
        "kubectl create secret generic store -n proteins",
    ),
    "secret of a volume": (
        make_facts(
            IDLE,
            pods=(waiting("ContainerCreating"),),
            events=(
                Event(
                    of="swissprot-0-0",
                    reason="FailedMount",
                    message='MountVolume.SetUp failed for volume "v" : configmap "model" not found',
                    at=ago(20),
                ),
                Event(
                    of="swissprot-0-0",
                    reason="FailedMount",
                    message="Unable to attach or mount volumes: unmounted volumes=[v]: timed out waiting for the condition",
                    at=ago(10),
                ),
            ),
        ),
        "ConfigMapMissing",
        Severity.STOPS,
        "kubectl create configmap model -n proteins",
    ),
    "volume": (
        make_facts(
            IDLE,
            pods=(waiting("ContainerCreating"),),
            events=(Event(of="swissprot-0-0", reason="FailedMount", message="timed out", at=ago(20)),),
        ),
        "Volume",
        Severity.STOPS,
        "timed out",
    ),
    "container": (
        make_facts(IDLE, pods=(waiting("CreateContainerError", "no command"),)),
        "NotStarted",
        Severity.STOPS,
        "CreateContainerError: no command",
    ),
    "stuck": (
        make_facts(pods=(make_pod(deletion_at=ago(600)),), nodes=(replace(GPU_NODE, is_ready=False),)),
        "StuckTerminating",
        Severity.HINDERS,
        "kubectl delete pod swissprot-0-0 -n proteins --force --grace-period=0",
    ),
    "node not ready": (
        make_facts(nodes=(replace(GPU_NODE, is_ready=False),)),
        "NodeNotReady",
        Severity.HINDERS,
        "kubectl describe node node-a",
    ),
    "breaker": (
        make_facts(
            replace(
                IDLE,
                desired=0,
                probe_at=NOW + timedelta(seconds=90),
                conditions=condition("CircuitOpen", "True", "TooManyFailures", "no worker is started"),
                last_failures=(failure("Configuration"),),
            )
        ),
        "CircuitOpen",
        Severity.STOPS,
        "One worker tries in 1 min 30 s.",
    ),
    "an image that did not come": (
        make_facts(make_run(failing_since=ago(60), last_failures=(failure("ImagePull"),))),
        "WorkersImagePull",
        Severity.HINDERS,
        "OOMKilled kubectl edit irun swissprot -n proteins   # image of container worker",
    ),
    "too little memory": (
        make_facts(make_run(failing_since=ago(60), last_failures=(failure(),))),
        "WorkersOutOfMemory",
        Severity.HINDERS,
        "kubectl edit irun swissprot -n proteins   # resources.limits.memory of container worker",
    ),
    "failures": (
        make_facts(make_run(failing_since=ago(200), last_failures=(failure(at=ago(200)), failure()))),
        "WorkersOutOfMemory",
        Severity.HINDERS,
        "2 worker(s) ended as OutOfMemory",
    ),
    "failures before the last progress": (
        make_facts(make_run(failing_since=None, last_failures=(failure(),))),
        "WorkersOutOfMemory",
        Severity.NOTE,
        "The run has progressed since.",
    ),
    "failures in spite of progress elsewhere": (
        make_facts(make_run(failing_since=ago(60), last_failures=(failure(at=ago(200)), failure()))),
        "WorkersOutOfMemory",
        Severity.HINDERS,
        "kubectl inferencerun logs swissprot -n proteins --previous --worker swissprot-1-3",
    ),
    "store that workers do not reach": (
        make_facts(UNCLAIMED, silences=(SILENCE,)),
        "StoreUnreached",
        Severity.STOPS,
        (
            "1 worker(s) have taken no shard for 40 s: the store does not answer them. the log of swissprot-0-0: no answer "
            "from s3://bucket/out at https://bucket.s3.amazonaws.com for 22 s: plan.json: connect timeout"
        ),
    ),
    "store that is silent at once": (
        make_facts(replace(UNCLAIMED, idle={"uid": ago(12)}), silences=(SILENCE,)),
        "StoreUnreached",
        Severity.STOPS,
        "have taken no shard for 12 s",
    ),
    "what lets workers reach a store": (
        make_facts(replace(UNCLAIMED, num_running_shards=1), silences=(SILENCE,)),
        "StoreUnreached",
        Severity.HINDERS,
        """kubectl edit irun swissprot -n proteins   # spec.workers.template, for a store of your own:
  spec:
    containers:
      - name: worker
        env: [{name: AWS_ENDPOINT_URL_S3, value: "http://HOST:PORT"}]
kubectl delete pod swissprot-0-0 -n proteins   # a worker keeps the template it was made with
kubectl get networkpolicy -n proteins   # egress to https://bucket.s3.amazonaws.com must be allowed""",
    ),
    "another store that workers do not reach": (
        make_facts(UNCLAIMED, silences=(replace(SILENCE, store="gs://bucket/out"),)),
        "StoreUnreached",
        Severity.STOPS,
        "plan.json: connect timeout kubectl get networkpolicy -n proteins",
    ),
    "no shard taken yet": (
        make_facts(UNCLAIMED),
        "NoShardTaken",
        Severity.NOTE,
        "kubectl inferencerun logs swissprot -n proteins --worker swissprot-0-0",
    ),
    "no shard taken for long": (
        make_facts(replace(UNCLAIMED, idle={"uid": ago(121)})),
        "NoShardTaken",
        Severity.STOPS,
        "have taken no shard for 2 min 01 s, though shards are free",
    ),
    "an init container at work": (
        make_facts(IDLE, pods=(waiting("PodInitializing", running_init="weights", created_at=ago(40)),)),
        "Starting",
        Severity.NOTE,
        "swissprot-0-0 (its init container weights runs)",
    ),
    "controller's image": (
        make_facts(leases=(), controller_pods=(replace(CONTROLLER, waiting_reason="ErrImagePull"),)),
        "ControllerDown",
        Severity.STOPS,
        (
            "pod op/ctl-0 cannot start, image controller:1 cannot be had: ErrImagePull helm upgrade inferencerun-operator "
            "charts/inferencerun-operator -n op --reuse-values --set controller.image.repository=REPOSITORY"
        ),
    ),
    "controller's secret": (
        make_facts(
            leases=(),
            controller_pods=(
                replace(
                    CONTROLLER,
                    waiting_reason="CreateContainerConfigError",
                    waiting_message='secret "store" not found',
                ),
            ),
        ),
        "ControllerDown",
        Severity.STOPS,
        "kubectl create secret generic store -n op --from-literal=KEY=VALUE",
    ),
    "controller that ends": (
        make_facts(
            leases=(),
            controller_pods=(
                replace(CONTROLLER, waiting_reason="CrashLoopBackOff", last_end="exit 64, Error, no such setting"),
            ),
        ),
        "ControllerDown",
        Severity.STOPS,
        (
            "ends soon after each start (last: exit 64, Error, no such setting): CrashLoopBackOff "
            "kubectl logs ctl-0 -n op --previous"
        ),
    ),
    "controller without a node": (
        make_facts(leases=(), controller_pods=(replace(CONTROLLER, unscheduled="0/1 nodes are available"),)),
        "ControllerDown",
        Severity.STOPS,
        "pod op/ctl-0 gets no node: 0/1 nodes are available kubectl describe pod ctl-0 -n op",
    ),
    "controller that cannot be made": (
        make_facts(leases=(), deployments=(replace(OPERATOR, problem="exceeded quota: q"),)),
        "ControllerDown",
        Severity.STOPS,
        "cannot make pods: exceeded quota: q kubectl describe replicaset -n op",
    ),
    "controller that others stand in for": (
        make_facts(controller_pods=(replace(CONTROLLER, waiting_reason="RunContainerError"),)),
        "ControllerPodDown",
        Severity.HINDERS,
        "pod op/ctl-0 cannot start: RunContainerError",
    ),
    "stalled": (
        make_facts(
            store=Store(held=(HeldShard(shard=3, pod="swissprot-0-0", node="a", silent_s=1200, is_stale=True),))
        ),
        "Stalled",
        Severity.HINDERS,
        "kubectl inferencerun logs swissprot -n proteins --worker swissprot-0-0",
    ),
    "failed shards": (
        make_facts(make_run(num_failed_shards=2)),
        "FailedShards",
        Severity.HINDERS,
        "kubectl inferencerun retry swissprot -n proteins",
    ),
    "backoff": (
        make_facts(
            replace(IDLE, desired=0),
            pods=(),
            store=Store(num_waiting_shards=3, next_claim_at=NOW + timedelta(seconds=20)),
        ),
        "Backoff",
        Severity.NOTE,
        "the first in 20 s",
    ),
    "quarantine": (
        make_facts(make_run(num_quarantined=4)),
        "Quarantine",
        Severity.NOTE,
        "kubectl inferencerun quarantine swissprot -n proteins",
    ),
    "evictions": (
        make_facts(make_run(goodput=0.3, num_restarts=9, by_class={"SpotEviction": 8, "Transient": 1})),
        "LowGoodput",
        Severity.HINDERS,
        "spec.checkpoint.profile: spot",
    ),
    "waste": (
        make_facts(make_run(goodput=0.3, num_restarts=9, by_class={"SpotEviction": 1, "Transient": 8})),
        "LowGoodput",
        Severity.HINDERS,
        "kubectl inferencerun failures swissprot -n proteins",
    ),
    "starting": (
        make_facts(IDLE, pods=(waiting("ContainerCreating", created_at=ago(40)),)),
        "Starting",
        Severity.NOTE,
        "for 40 s now",
    ),
    "starting for long": (
        make_facts(IDLE, pods=(waiting("ContainerCreating", created_at=ago(400)),)),
        "Starting",
        Severity.HINDERS,
        "kubectl describe pod swissprot-0-0",
    ),
    "deadline": (
        make_facts(make_run(phase="Failed", conditions=condition("Failed", "True", "DeadlineExceeded"))),
        "FailedDeadlineExceeded",
        Severity.STOPS,
        'kubectl patch irun swissprot -n proteins --type merge -p \'{"spec":{"activeDeadlineSeconds":null}}\'',
    ),
    "too much in quarantine": (
        make_facts(make_run(phase="Failed", conditions=condition("Failed", "True", "TooManyQuarantined"))),
        "FailedTooManyQuarantined",
        Severity.STOPS,
        "kubectl inferencerun retry swissprot -n proteins --quarantined",
    ),
    "failed": (
        make_facts(
            make_run(
                phase="Failed",
                conditions=condition("Failed", "True", "TooManyFailedShards"),
                last_failures=(failure(),),
            )
        ),
        "FailedTooManyFailedShards",
        Severity.STOPS,
        "last failure: OutOfMemory, swissprot-1-3 on node-b: OOMKilled; more memory",
    ),
    "succeeded with quarantine": (
        make_facts(make_run(phase="Succeeded", num_quarantined=1)),
        "Quarantine",
        Severity.NOTE,
        "1 record(s)",
    ),
}


def codes(findings: Sequence[Finding]) -> list[str]:
    """What was found."""
    return [item.code for item in findings]


@pytest.mark.parametrize(("facts", "code", "severity", "text"), CASES.values(), ids=CASES)
def test_each_thing_that_is_wrong_is_found_alone(facts: Facts, code: str, severity: Severity, text: str) -> None:
    """With how much it matters, and the words that lead to it or out of it."""
    findings = diagnose(facts)

    assert codes(findings) == [code]
    (found,) = findings
    assert found.severity is severity
    assert text in f"{found.summary} {found.evidence} {found.fix}"
    assert found.summary.endswith(".")
    assert found.fix


WELL = {
    "at work": make_facts(),
    "nothing may be seen": make_facts(leases=None, deployments=None, pods=None, nodes=None, events=None, store=None),
    "succeeded": make_facts(make_run(phase="Succeeded", active=0, ready=0, desired=0)),
    "the installation": replace(make_facts(), run=None),
    "just made": make_facts(
        make_run(observed_generation=None, created_at=ago(5), phase="", desired=0, active=0, ready=0),
        pods=(),
        leases=None,
    ),
    "an old refusal": make_facts(HALF, events=(replace(refusal("exceeded quota: q"), at=ago(3600)),)),
    "a refusal that has passed": make_facts(events=(refusal("exceeded quota: q"),)),
    "an eviction": make_facts(make_run(last_failures=(failure("SpotEviction"),))),
    "an old failure": make_facts(make_run(last_failures=(failure(at=ago(3600)),))),
    "a failure before somebody stepped in": make_facts(make_run(begun_at=ago(30), last_failures=(failure(),))),
    "a worker that has just begun": make_facts(replace(UNCLAIMED, idle={"uid": ago(20)})),
    "workers without a shard for as long as a start takes": make_facts(replace(UNCLAIMED, idle={"uid": ago(29)})),
    "no record yet, however much time": make_facts(make_run(goodput=0.0, num_restarts=3)),
    "a worker without a shard, and none free": make_facts(replace(UNCLAIMED, num_running_shards=2)),
    "a worker that has a shard by now": make_facts(
        UNCLAIMED,
        store=Store(held=(HeldShard(shard=3, pod="swissprot-0-0", node="a", silent_s=2, is_stale=False),)),
    ),
    "a worker without a shard that leaves": make_facts(UNCLAIMED, pods=(make_pod(deletion_at=ago(5)),)),
    "a controller that is starting": make_facts(
        controller_pods=(replace(CONTROLLER, waiting_reason="ContainerCreating"),)
    ),
    "a pod just made": make_facts(IDLE, pods=(make_pod(node="", is_running=False, created_at=ago(2)),)),
    "a worker that drains": make_facts(pods=(make_pod(deletion_at=ago(10)),)),
    "the model loads": make_facts(make_run(goodput=0.1, num_restarts=1)),
    "a clock that is off by little": make_facts(store=Store(skew_s=30)),
}


@pytest.mark.parametrize("facts", WELL.values(), ids=WELL)
def test_nothing_is_found_where_nothing_is_wrong(facts: Facts) -> None:
    """What is in order, passes by itself or could not be seen is no finding."""
    assert diagnose(facts) == ()


def test_causes_come_first() -> None:
    """Whoever mends from the top down does not mend in vain."""
    facts = make_facts(
        replace(IDLE, num_failed_shards=1),
        leases=(),
        pods=(unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."), waiting("ErrImagePull")),
        events=(refusal("exceeded quota: q"),),
    )

    assert codes(diagnose(facts)) == ["ControllerDown", "QuotaExceeded", "GpusTaken", "Image", "FailedShards"]


def test_one_finding_for_all_workers_that_wait_alike() -> None:
    """Their number is in the sentence; two reasons of the scheduler are two findings."""
    message = "0/5 nodes are available: 2 Insufficient cpu, 3 Insufficient nvidia.com/gpu."
    pods = tuple(unplaced(message, created_at=ago(60 * number)) for number in range(1, 4))

    findings = diagnose(make_facts(IDLE, pods=pods))

    assert codes(findings) == ["GpusTaken", "Insufficient"]
    assert findings[0].summary.startswith("3 workers wait for a node")
    assert findings[0].evidence.startswith("for 3 min 00 s: ")


def test_failures_are_told_once_while_the_breaker_is_open() -> None:
    """The breaker's finding has them already."""
    run = replace(IDLE, desired=0, conditions=condition("CircuitOpen", "True", "X"), last_failures=(failure(),))

    findings = diagnose(make_facts(run, pods=()))

    assert codes(findings) == ["CircuitOpen"]
    assert "more memory" in findings[0].evidence


def test_what_opened_the_breaker_is_said_once() -> None:
    """The condition has its evidence and advice already: of the failure only the worker is added. The fix is a command."""
    conditions = condition("CircuitOpen", "True", "X", "no worker is started: OOMKilled; more memory")
    run = replace(IDLE, desired=0, conditions=conditions, last_failures=(failure(),))

    (found,) = diagnose(make_facts(run, pods=()))

    assert found.evidence == (
        "no worker is started: OOMKilled; more memory | last failure: OutOfMemory, swissprot-1-3 on node-b"
    )
    assert found.fix.startswith("kubectl inferencerun retry swissprot -n proteins ")


@pytest.mark.parametrize(
    "pod",
    [
        waiting("CreateContainerConfigError", 'configmap "model" not found'),
        waiting("ErrImagePull"),
        waiting("CreateContainerError", "no such command"),
    ],
    ids=["missing", "image", "command"],
)
def test_pods_that_wait_are_made_anew_once_the_template_is_mended(pod: Pod) -> None:
    """They keep the template they were made with, and would wait for what nobody will ever make."""
    (found,) = diagnose(make_facts(IDLE, pods=(pod,)))

    assert found.fix.splitlines()[-1].startswith("kubectl delete pods -n proteins -l inferencerun.dev/run=swissprot ")


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ('secret "store" not found', "kubectl create secret generic store -n proteins --from-literal=KEY=VALUE"),
        ("it cannot start (ErrImageNeverPull): no such image", "kubectl edit irun swissprot -n proteins   # image"),
        ("exit 69: the store refused: 403", "kubectl edit irun swissprot -n proteins   # the credentials of workers"),
        ("ModelError: f failed", "kubectl edit irun swissprot -n proteins   # spec.model, and spec.resume"),
    ],
)
def test_an_open_breaker_says_first_what_mends_its_cause(message: str, fix: str) -> None:
    """A breaker that opens before doctor is asked hides the pod that could not start; its cause is mended all the same."""
    run = replace(IDLE, desired=0, conditions=condition("CircuitOpen", "True", "X", message))

    (found,) = diagnose(make_facts(run, pods=()))

    assert found.fix.startswith(fix)
    assert "\nkubectl inferencerun retry swissprot -n proteins " in found.fix


def test_a_run_that_has_failed_for_its_model_says_how_to_change_it() -> None:
    """Its parameters may be changed in place where a new generation is asked for; a retry alone would fail again."""
    run = make_run(
        phase="Failed", conditions=condition("Failed", "True", "X", "2 shard(s) failed: ModelError: f failed")
    )

    (found,) = diagnose(make_facts(run))

    assert [line.partition("   # ")[0] for line in found.fix.splitlines()] == [
        "kubectl inferencerun failures swissprot -n proteins",
        "kubectl edit irun swissprot -n proteins",
        "kubectl inferencerun retry swissprot -n proteins",
    ]


@pytest.mark.parametrize("facts", [facts for facts, *_ in CASES.values()], ids=CASES)
def test_a_line_that_begins_with_a_command_is_one(facts: Facts) -> None:
    """A shell takes it as it stands: what is said besides is a comment, or a line of its own."""
    lines = [line for item in diagnose(facts) for line in item.fix.splitlines()]
    commands = [line for line in lines if line.startswith(("kubectl ", "helm "))]
    words = [word for line in commands for word in shlex.split(line, comments=True)]

    assert [word for word in words if word.endswith((",", ":", ";")) or word in {"or", "and", "then"}] == []
    assert [line for line in lines if line not in commands and re.search(r"kubectl \w+ .*-n ", line)] == []


@pytest.mark.parametrize("message", ["GPU", "no GPU node", "too many"])
def test_a_run_that_gets_no_gpu_may_run_on_cpus(message: str) -> None:
    """Whatever is wrong with the GPUs; the workers that wait are made anew, since they keep their requests."""
    nodes = {"GPU": (GPU_NODE,), "no GPU node": (Node(name="a"),), "too many": (GPU_NODE,)}[message]
    run = replace(IDLE, gpus_per_worker=8 if message == "too many" else 1)
    pods = (unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),)

    (found,) = diagnose(make_facts(run, nodes=nodes, pods=pods))

    assert found.fix.splitlines()[-2:] == [
        'kubectl patch irun swissprot -n proteins --type merge -p \'{"spec": {"workers": {"gpusPerWorker": 0}}}\'',
        "kubectl delete pods -n proteins -l inferencerun.dev/run=swissprot --field-selector status.phase=Pending",
    ]
