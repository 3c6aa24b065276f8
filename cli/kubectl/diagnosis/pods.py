"""Findings about pods that cannot be made, do not start, or do not go. Pure.

The API server's and the kubelet's words are matched as they are; what is not known becomes a finding with the words
themselves. Source: https://github.com/kubernetes/kubernetes, plugin/pkg/admission, pkg/kubelet/images
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cli.kubectl.diagnosis.finding import MISSING, Finding, Severity, age_s, edit, few, recent, renew
from cli.kubectl.diagnosis.installation import INSTALL
from cli.kubectl.facts import Facts, Pod, Run
from cli.texts import duration_text

STARTING_S = 300.0
"""A worker whose image is large may take so long to start."""


STUCK_S = 60.0
"""Beyond its grace period a pod is gone, unless its node is."""


def refused(facts: Facts, run: Run) -> Iterator[Finding]:
    """Pods that the API server did not let the controller create."""
    if run.active >= max(1, run.desired):
        return
    texts = [
        item.message
        for item in recent(facts.events, facts.now)
        if item.of == run.name and item.reason == "FailedCreate"
    ]
    if "cannot be created" in run.message:
        texts.append(run.message)
    seen: set[str] = set()
    for text in reversed(texts):  # the newest of each kind
        for pattern, code, summary, fix in _REFUSALS:
            match = re.search(pattern, text)
            if match is None:
                continue
            if code not in seen:
                seen.add(code)
                name = next((group for group in match.groups() if group), "") if match.groups() else ""
                yield Finding(
                    code=code,
                    severity=Severity.STOPS if not run.active else Severity.HINDERS,
                    summary=summary,
                    evidence=text,
                    fix=fix.format(run=run.name, namespace=run.namespace, name=name, fewer=max(1, run.active)),
                )
            break


_REFUSALS: tuple[tuple[str, str, str, str], ...] = (
    (
        r"exceeded quota: ([\w.-]+)|failed quota: ([\w.-]+)",
        "QuotaExceeded",
        "A ResourceQuota of the namespace does not let another worker be made.",
        (
            "kubectl describe resourcequota {name} -n {namespace}   # raise it, or\n"
            "kubectl inferencerun scale {run} {fewer} -n {namespace}"
        ),
    ),
    (
        r'service ?account "?(?:[\w-]+/)?([\w.-]+?)"?(?: was)? not found|serviceaccounts? "([\w.-]+)" not found',
        "ServiceAccountMissing",
        "The workers' service account does not exist in the run's namespace.",
        "kubectl create serviceaccount {name} -n {namespace}   # or add the namespace to worker.namespaces of the chart",
    ),
    (
        r"(?:maximum|minimum) .* usage per|limit to request ratio",
        "LimitRange",
        "A LimitRange of the namespace refuses the workers' requests or limits.",
        (
            "kubectl describe limitrange -n {namespace}\n"
            "kubectl edit irun {run} -n {namespace}   # resources of container worker in spec.workers.template"
        ),
    ),
    (
        r"violates PodSecurity",
        "PodSecurity",
        "The namespace's Pod Security standard refuses the workers.",
        "correct securityContext in spec.workers.template, or the label pod-security.kubernetes.io/enforce of {namespace}",
    ),
    (
        r'admission webhook "([^"]+)"',
        "AdmissionRefused",
        "An admission webhook refuses the workers.",
        "follow what webhook {name} says, in spec.workers.template",
    ),
    (
        r'User "system:serviceaccount:[^"]+" cannot',
        "ControllerForbidden",
        "The controller lacks a right in the run's namespace.",
        f"{INSTALL}\nwith controller.watchNamespace its rights end at that namespace",
    ),
    (
        r"belongs to somebody else",
        "NameTaken",
        "A pod that is not this run's has the name of a worker.",
        "kubectl get pods -n {namespace}   # delete it, or name the run otherwise",
    ),
    (
        r"",
        "PodRefused",
        "The API server does not let the workers be made.",
        "kubectl edit irun {run} -n {namespace}   # what is seen above, in spec.workers.template; or the namespace",
    ),
)
"""(what is said, code, summary, fix); the first that matches. The pattern's group is the fix's `name`."""


def waiting(facts: Facts, run: Run) -> Iterator[Finding]:
    """Pods that have a node, but whose container does not start."""
    severity = Severity.STOPS if not run.ready else Severity.HINDERS
    told: set[tuple[str, str]] = set()
    for pod in facts.pods or ():
        if not pod.node or pod.is_running or pod.has_ended or pod.deletion_at is not None:
            continue
        mounts = [
            item for item in recent(facts.events, facts.now) if item.of == pod.name and item.reason == "FailedMount"
        ]
        # After two minutes the kubelet says besides that it has waited in vain, which hides what for.
        told_why = [item for item in mounts if MISSING.search(item.message)] or mounts
        text = pod.waiting_message or (told_why[-1].message if told_why else "")
        missing = MISSING.search(text)
        key = (pod.waiting_reason, missing[2] if missing else pod.image)
        if key in told:
            continue
        if missing is not None:
            told.add(key)
            yield _missing_object(run, pod, missing[1], missing[2], text, severity)
        elif pod.waiting_reason in _IMAGE_FIXES:
            told.add(key)
            yield Finding(
                code="Image",
                severity=severity,
                summary=f"The workers' image {pod.image} cannot be had on node {pod.node}.",
                evidence=f"{pod.waiting_reason}: {text}",
                fix=f"{_IMAGE_FIXES[pod.waiting_reason].format(edit=edit(run, IMAGE))}\n{renew(run)}",
            )
        elif mounts:
            told.add(key)
            yield Finding(
                code="Volume",
                severity=severity,
                summary=f"Worker {pod.name} waits for a volume.",
                evidence=text,
                fix=f"kubectl describe pod {pod.name} -n {run.namespace}\n{_other_template(run)}",
            )
        elif pod.waiting_reason not in {"", "ContainerCreating", "PodInitializing"}:
            told.add(key)
            yield Finding(
                code="NotStarted",
                severity=severity,
                summary=f"Worker {pod.name} cannot be started on node {pod.node}.",
                evidence=f"{pod.waiting_reason}: {text}",
                fix=f"kubectl describe pod {pod.name} -n {run.namespace}\n{_other_template(run)}",
            )


IMAGE = "image of container worker in spec.workers.template; none there: worker.image of the chart"
_PULL = "{edit}\nfor a private registry name a Secret in imagePullSecrets of spec.workers.template"


_IMAGE_FIXES = {
    "ErrImagePull": _PULL,
    "ImagePullBackOff": _PULL,
    "InvalidImageName": "{edit}",
    "ErrImageNeverPull": "{edit}\nor load the image on the node, or let it be pulled: worker.image.pullPolicy of the chart",
    "ImageInspectError": "the image on the node is damaged: remove it there, or use another node",
    "RegistryUnavailable": "the registry does not answer: wait, or use another",
}


def _missing_object(run: Run, pod: Pod, kind: str, name: str, text: str, severity: Severity) -> Finding:
    is_secret = kind == "secret"
    return Finding(
        code="SecretMissing" if is_secret else "ConfigMapMissing",
        severity=severity,
        summary=f"The {'Secret' if is_secret else 'ConfigMap'} {name!r} that the workers need does not exist.",
        evidence=f"{pod.name}: {text}",
        fix=f"{missing_fix(run, kind, name)}\n{renew(run)}",
    )


def _other_template(run: Run) -> str:
    return f"{edit(run, 'spec.workers.template')}\n{renew(run)}"


def missing_fix(run: Run, kind: str, name: str) -> str:
    """What mends a Secret or ConfigMap that is not there."""
    create = "secret generic" if kind == "secret" else "configmap"
    return (
        f"kubectl create {create} {name} -n {run.namespace} --from-literal=KEY=VALUE   # or, if its name is wrong:\n"
        f"{edit(run, 'spec.workers.template')}"
    )


def stuck(facts: Facts, run: Run) -> Iterator[Finding]:
    """Pods that should be gone, and nodes that are not well."""
    stuck = [
        pod for pod in facts.pods or () if pod.deletion_at is not None and age_s(pod.deletion_at, facts.now) > STUCK_S
    ]
    unwell = {node.name for node in facts.nodes or () if not node.is_ready}
    if stuck:
        yield Finding(
            code="StuckTerminating",
            severity=Severity.HINDERS,
            summary=f"{len(stuck)} worker(s) should have ended long ago: their node may be cut off.",
            evidence=f"{few(pod.name for pod in stuck)}; nodes not ready: {few(unwell) or 'none'}",
            fix=f"kubectl get node {stuck[0].node}\nkubectl delete pod {stuck[0].name} -n {run.namespace} "
            "--force --grace-period=0   # once the node is surely off",
        )
    affected = [pod for pod in facts.pods or () if pod.node in unwell and not pod.has_ended and pod not in stuck]
    if affected:
        nodes = sorted({pod.node for pod in affected})
        yield Finding(
            code="NodeNotReady",
            severity=Severity.HINDERS,
            summary=f"{len(affected)} worker(s) are on nodes that are not ready; they are replaced unless these come back.",
            evidence=f"{few(nodes)}",
            fix=f"kubectl describe node {nodes[0]}",
        )


def starting(facts: Facts, run: Run, *, is_explained: bool) -> Iterator[Finding]:
    """Workers that are starting, when nothing else explains that none is at work."""
    starting = [
        pod
        for pod in facts.pods or ()
        if pod.node
        and not (pod.is_running or pod.has_ended)
        and pod.waiting_reason in {"", "ContainerCreating", "PodInitializing"}
    ]
    if is_explained or not starting:
        return
    waited_s = max(age_s(pod.created_at, facts.now) for pod in starting)
    yield Finding(
        code="Starting",
        severity=Severity.HINDERS if waited_s > STARTING_S else Severity.NOTE,
        summary=f"{len(starting)} worker(s) are starting, for {duration_text(waited_s)} now; a large image takes its time.",
        evidence=few(
            f"{pod.name} (its init container {pod.running_init} runs)" if pod.running_init else pod.name
            for pod in starting
        ),
        fix=f"kubectl describe pod {starting[0].name} -n {run.namespace}\nor wait",
    )
