"""Findings about workers that wait for a queue or for a node. Pure.

The scheduler's words are matched as they are; one that is not known becomes a finding with the words themselves.
Source: https://github.com/kubernetes/kubernetes, pkg/scheduler/framework
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from cli.kubectl.diagnosis.finding import Finding, Severity, age_s, edit, few, recent, renew
from cli.kubectl.facts import Facts, Node, Pod, Run
from cli.texts import duration_text

UNSCHEDULED_S = 30.0
"""A scheduler that is alive has said something of a new pod by then."""


def queue(facts: Facts, run: Run) -> Iterator[Finding]:
    """Pods that a queue has not admitted."""
    gated = [pod for pod in facts.pods or () if pod.gates and not pod.has_ended]
    if gated:
        gates = ", ".join(sorted({gate for pod in gated for gate in pod.gates}))
        yield Finding(
            code="NotAdmitted",
            severity=Severity.STOPS if not run.ready else Severity.HINDERS,
            summary=f"{_workers(gated)} for the queue {run.queue!r} to admit {_them(gated)}."
            if run.queue
            else f"{_workers(gated)} for a scheduling gate to be lifted.",
            evidence=f"{gates} on {few(pod.name for pod in gated)}",
            fix=f"kubectl get workloads -n {run.namespace}\nkubectl describe localqueue {run.queue} -n {run.namespace}"
            if run.queue
            else f"kubectl get pod {gated[0].name} -n {run.namespace} -o yaml   # lift it, or ask who set it",
        )


def unplaced(facts: Facts, run: Run) -> Iterator[Finding]:
    """Pods that wait for a node, by cause."""
    pods = [pod for pod in facts.pods or () if not (pod.node or pod.gates or pod.has_ended) and pod.deletion_at is None]
    refused = [pod for pod in pods if pod.is_refused_by_scheduler]
    severity = Severity.STOPS if not run.ready else Severity.HINDERS
    ignored = [
        pod for pod in pods if not pod.is_refused_by_scheduler and age_s(pod.created_at, facts.now) > UNSCHEDULED_S
    ]
    if ignored:
        yield Finding(
            code="NoScheduler",
            severity=severity,
            summary=f"{_workers(ignored)} for a node, and no scheduler has said anything of {_them(ignored)}.",
            evidence=f"{few(pod.name for pod in ignored)}: no condition PodScheduled",
            fix="kubectl get pods -n kube-system   # look at schedulerName in spec.workers.template, too",
        )
    if not refused:
        return
    message = refused[-1].scheduler_message
    coming = [
        item
        for item in recent(facts.events, facts.now)
        if item.reason == "TriggeredScaleUp" and item.of in _names(refused)
    ]
    helpless = [
        item
        for item in recent(facts.events, facts.now)
        if item.reason == "NotTriggerScaleUp" and item.of in _names(refused)
    ]
    since = duration_text(age_s(min(pod.created_at for pod in refused), facts.now))
    evidence = f"for {since}: {message}"
    if helpless:
        evidence += f" | autoscaler: {helpless[-1].message}"
    if coming:
        evidence += f" | the autoscaler is adding a node: {coming[-1].message}"
    for code, cause, fix in _placement_causes(facts, run, refused[-1], message):
        yield Finding(
            code=code,
            severity=Severity.NOTE if coming else severity,
            summary=f"{_workers(refused)} for a node: {cause}.",
            evidence=evidence,
            fix=fix,
        )


def _placement_causes(facts: Facts, run: Run, pod: Pod, message: str) -> Iterator[tuple[str, str, str]]:
    """(code, cause, fix) for what the scheduler says."""
    nodes, num_causes = facts.nodes, 0
    ready = [node for node in nodes or () if node.is_ready and not node.is_cordoned]
    if "no nodes available" in message or re.match(r"0/0 nodes", message):
        yield "NoNodes", "the cluster has no node at all", "add a node pool, or let the autoscaler have one"
        return
    if f"Insufficient {run.gpu_resource}" in message:
        num_causes += 1
        yield _gpu_cause(run, nodes, ready)
    if re.search(r"didn't match (?:Pod's )?node (?:affinity|selector)", message):
        num_causes += 1
        yield _label_cause(run, pod, nodes)
    if "taint" in message:
        num_causes += 1
        taints = re.findall(r"taints? \{([^}]*)\}", message)
        named = ", ".join(dict.fromkeys(taints)) or "a taint"
        yield (
            "TaintNotTolerated",
            f"nodes have {named}, which the workers do not tolerate",
            edit(run, "a toleration in spec.workers.template, or capacity.provider: gke, eks or karpenter")
            + f"\n{renew(run)}",
        )
    for resource in dict.fromkeys(re.findall(r"Insufficient ([\w./-]*\w)", message)):
        if resource != run.gpu_resource:
            num_causes += 1
            yield (
                "Insufficient",
                f"no node has enough {resource} left",
                f"{edit(run, 'lower requests in spec.workers.template; or add nodes')}\n{renew(run)}",
            )
    if "unschedulable" in message:
        num_causes += 1
        cordoned = few(node.name for node in nodes or () if node.is_cordoned)
        yield "Cordoned", "nodes are cordoned", f"kubectl uncordon {cordoned}"
    if "persistentvolumeclaim" in message.lower() or "volume" in message:
        num_causes += 1
        yield (
            "Volume",
            "a volume cannot be had",
            f"kubectl get pvc -n {run.namespace}\n{edit(run, 'spec.workers.template')}",
        )
    if not num_causes:
        yield "Unschedulable", "none fits", f"kubectl describe pod {pod.name} -n {run.namespace}"


def _gpu_cause(run: Run, nodes: Sequence[Node] | None, ready: Sequence[Node]) -> tuple[str, str, str]:
    resource = run.gpu_resource
    on_cpus = "" if run.ready else f"\nor run on CPUs:\n{_on_cpus(run)}"
    if nodes is not None and not any(node.gpus(resource) for node in nodes):
        return (
            "NoGpuNodes",
            f"no node offers {resource}",
            (
                "add a GPU node pool with its device plugin (GPU operator), after which this shows "
                f"{resource}:\nkubectl describe nodes{on_cpus}"
            ),
        )
    largest = max((node.gpus(resource) for node in ready), default=0)
    if nodes is not None and largest < run.gpus_per_worker:
        return (
            "GpusPerWorker",
            f"a worker wants {run.gpus_per_worker} {resource}, and the largest node offers {largest}",
            f"{edit(run, 'spec.workers.gpusPerWorker')}\n{renew(run)}{on_cpus}",
        )
    return (
        "GpusTaken",
        f"all {resource} are taken",
        f"kubectl inferencerun scale {run.name} {max(1, run.ready)} -n {run.namespace}   # or wait, or add nodes{on_cpus}",
    )


def _on_cpus(run: Run) -> str:
    patch = json.dumps({"spec": {"workers": {"gpusPerWorker": 0}}})
    return f"kubectl patch irun {run.name} -n {run.namespace} --type merge -p '{patch}'\n{renew(run)}"


def _label_cause(run: Run, pod: Pod, nodes: Sequence[Node] | None) -> tuple[str, str, str]:
    absent = [
        f"{key}={value}"
        for key, value in pod.required_labels
        if not any(node.labels.get(key) == value for node in nodes or ())
    ]
    if nodes is not None and absent and run.provider != "none" and run.prefer == "spot" and _is_spot(absent):
        return (
            "NoSpotNodes",
            f"no node has {', '.join(absent)}, as spot nodes of {run.provider} have",
            edit(run, "capacity.prefer: onDemand, or onDemandAfterPendingSeconds; or add a spot node pool")
            + f"\n{renew(run)}",
        )
    if nodes is not None and absent:
        return (
            "LabelsUnmatched",
            f"no node has {', '.join(absent)}",
            f"{edit(run, 'nodeSelector or affinity of spec.workers.template')}\n{renew(run)}",
        )
    return (
        "LabelsUnmatched",
        "its node selector or affinity leaves none",
        f"{edit(run, 'spec.workers.template and capacity')}\n{renew(run)}",
    )


def _is_spot(labels: Iterable[str]) -> bool:
    return any("spot" in label.lower() for label in labels)


def _workers(pods: Sequence[Pod]) -> str:
    return "1 worker waits" if len(pods) == 1 else f"{len(pods)} workers wait"


def _them(pods: Sequence[Pod]) -> str:
    return "it" if len(pods) == 1 else "them"


def _names(pods: Iterable[Pod]) -> frozenset[str]:
    return frozenset(pod.name for pod in pods)
