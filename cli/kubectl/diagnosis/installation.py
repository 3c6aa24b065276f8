"""Findings about the operator itself: its definition, its controllers, the user's rights. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from cli.kubectl.diagnosis.finding import IMAGE_REASONS, MISSING, Finding, Severity, age_s, in_words
from cli.kubectl.facts import ControllerPod, Facts
from cli.texts import duration_text
from contract.names import ConditionType

UNSEEN_S = 60.0
"""A controller that is alive has looked at a new run by then."""


INSTALL = "helm upgrade --install inferencerun-operator charts/inferencerun-operator -n inferencerun --create-namespace"


def not_installed() -> Finding:
    """The kind is not served."""
    return Finding(
        code="NotInstalled",
        severity=Severity.STOPS,
        summary="The cluster does not serve InferenceRuns: the operator's definition is missing, or of another version.",
        evidence="",
        fix=INSTALL,
    )


def installation(facts: Facts) -> Iterator[Finding]:
    """Definition, controllers, and what the user may do."""
    if facts.definition is not None and facts.definition.missing:
        names = ", ".join(sorted(facts.definition.missing))
        yield Finding(
            code="DefinitionOld",
            severity=Severity.HINDERS,
            summary="The definition in the cluster is older than this program: the server drops what it does not know.",
            evidence=f"not in it: {names}",
            fix=f"kubectl apply -f deploy/crd.yaml   # or, of a Helm release:\n{INSTALL}",
        )
    yield from _controller(facts)
    if facts.denied:
        yield Finding(
            code="YouMayNot",
            severity=Severity.NOTE,
            summary="You lack rights that some commands need.",
            evidence=f"you may not {'; '.join(facts.denied)}",
            fix="ask who administers the cluster for the role 'edit' in the namespace",
        )


def _controller(facts: Facts) -> Iterator[Finding]:
    now, run = facts.now, facts.run
    deployed = "; ".join(
        f"Deployment {item.namespace}/{item.name}: {item.ready} of {item.wanted} ready"
        for item in facts.deployments or ()
    )
    if facts.leases is not None:
        if not any(item.is_alive(now) for item in facts.leases):
            yield Finding(
                code="ControllerDown",
                severity=Severity.STOPS,
                summary="No controller is at work: nothing starts, stops or judges workers. Those that run go on.",
                evidence="; ".join(
                    [
                        *(
                            _last_sign(item.holder, item.renewed_at, now, where=f"{item.namespace}/{item.name}")
                            for item in facts.leases
                        )
                    ]
                    or ["no Lease of a controller exists"]
                )
                + (f"; {deployed}" if deployed else "")
                + "".join(f"\n{cause}" for cause, _ in _troubles(facts)),
                fix=_controller_fix(facts),
            )
            return
        for cause, fix in _troubles(facts)[:1]:
            yield Finding(
                code="ControllerPodDown",
                severity=Severity.HINDERS,
                summary="A controller does not start: another one leads, and nobody would take over from it.",
                evidence=cause,
                fix=fix,
            )
    elif run is not None and run.observed_generation is None and age_s(run.created_at, now) > UNSEEN_S:
        yield Finding(
            code="NobodyLooks",
            severity=Severity.STOPS,
            summary=f"No controller has looked at the run, made {duration_text(age_s(run.created_at, now))} ago.",
            evidence=deployed or "its status is empty",
            fix=_controller_fix(facts),
        )
        return
    if run is None:
        return
    if run.observed_generation is None and age_s(run.created_at, now) > UNSEEN_S:
        yield Finding(
            code="ControllerBlind",
            severity=Severity.STOPS,
            summary="A controller is at work, but has not looked at this run: it may watch another namespace.",
            evidence=f"the status is still empty after {duration_text(age_s(run.created_at, now))}",
            fix="set controller.watchNamespace of the chart to this namespace, or to '' for all",
        )
    progressing = run.conditions.get(ConditionType.PROGRESSING)
    if progressing is not None and progressing.reason == "ControllerError":
        yield Finding(
            code="ControllerError",
            severity=Severity.STOPS,
            summary="The controller fails at this run, by a mistake of its own.",
            evidence=in_words(progressing.message),
            fix=f"{_controller_log(facts)}\nand report what it says",
        )


def _last_sign(holder: str, renewed_at: datetime | None, now: datetime, *, where: str) -> str:
    if not holder:
        return f"Lease {where} has been given up"
    age = "never" if renewed_at is None else f"{duration_text(age_s(renewed_at, now))} ago"
    return f"Lease {where} of {holder} was renewed {age}"


def _controller_log(facts: Facts) -> str:
    if not facts.deployments:
        return "read the controller's log"
    first = facts.deployments[0]
    return f"kubectl logs -n {first.namespace} deployment/{first.name}"


def _controller_fix(facts: Facts) -> str:
    if not facts.deployments:
        return INSTALL
    first = facts.deployments[0]
    if first.wanted == 0:
        return f"kubectl scale -n {first.namespace} deployment/{first.name} --replicas 2"
    troubles = _troubles(facts)
    if troubles:
        return troubles[0][1]
    return f"kubectl describe pods -n {first.namespace} -l app.kubernetes.io/component=controller\n{_controller_log(facts)}"


def _troubles(facts: Facts) -> list[tuple[str, str]]:
    """(what keeps a controller from starting, the command that mends it), each once."""
    pods = [found for pod in facts.controller_pods if (found := _pod_trouble(pod)) is not None]
    made = [
        (
            f"Deployment {item.namespace}/{item.name} cannot make pods: {item.problem}",
            f"kubectl describe replicaset -n {item.namespace} -l app.kubernetes.io/component=controller",
        )
        for item in facts.deployments or ()
        if item.problem
    ]
    fixes: dict[str, str] = {}
    for cause, fix in (*pods, *made):
        fixes.setdefault(fix, cause)
    return [(cause, fix) for fix, cause in fixes.items()]


def _pod_trouble(pod: ControllerPod) -> tuple[str, str] | None:
    place, reason = f"pod {pod.namespace}/{pod.name}", pod.waiting_reason
    describe = f"kubectl describe pod {pod.name} -n {pod.namespace}"
    said = f"{reason}: {pod.waiting_message}" if pod.waiting_message else reason
    missing = MISSING.search(pod.waiting_message)
    if pod.unscheduled:
        return f"{place} gets no node: {pod.unscheduled}", describe
    if missing is not None:
        kind, name = missing[1], missing[2]
        create = "secret generic" if kind == "secret" else "configmap"
        return (
            f"{place} cannot start, {kind} {name!r} does not exist: {said}",
            f"kubectl create {create} {name} -n {pod.namespace} --from-literal=KEY=VALUE",
        )
    if reason in IMAGE_REASONS:
        return (
            f"{place} cannot start, image {pod.image} cannot be had: {said}",
            (
                f"helm upgrade inferencerun-operator charts/inferencerun-operator -n {pod.namespace} --reuse-values "
                "--set controller.image.repository=REPOSITORY --set controller.image.tag=TAG"
            ),
        )
    if reason == "CrashLoopBackOff" or (pod.last_end and not reason):
        how = f" (last: {pod.last_end})" if pod.last_end else ""
        return (
            f"{place} ends soon after each start{how}: {reason or 'its container has ended'}",
            f"kubectl logs {pod.name} -n {pod.namespace} --previous",
        )
    if reason not in {"", "ContainerCreating", "PodInitializing"}:
        return f"{place} cannot start: {said}", describe
    return None
