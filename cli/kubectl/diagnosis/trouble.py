"""Findings about a run at work: breakers, failures, silence, waste. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from cli.kubectl.diagnosis.finding import (
    IMAGE_REASONS,
    MISSING,
    RECENT,
    Finding,
    Severity,
    edit,
    failure_text,
    few,
)
from cli.kubectl.diagnosis.pods import IMAGE, missing_fix
from cli.kubectl.facts import IDLE_S, Facts, Pod, Run, without_shard
from cli.texts import duration_text
from contract.names import ConditionType, FailureClass
from controller.failure_policy import FREE

LOW_GOODPUT = 0.5


MIN_RESTARTS = 3
"""Fewer say nothing about goodput: loading a model once takes its share of a short run."""


def breaker(facts: Facts, run: Run) -> Iterator[Finding]:
    """The run's circuit breaker."""
    condition = run.conditions.get(ConditionType.CIRCUIT_OPEN)
    if condition is None or condition.status != "True":
        return
    until = ""
    if run.probe_at is not None:
        left_s = (run.probe_at - facts.now).total_seconds()
        until = f" One worker tries in {duration_text(left_s)}." if left_s > 0 else " One worker may try now."
    yield Finding(
        code="CircuitOpen",
        severity=Severity.STOPS,
        summary=f"The run's circuit breaker is open: its workers fail, so none is started.{until}",
        evidence=" | ".join(filter(None, [condition.message, failure_text(run.last_failures, told=condition.message)])),
        fix=f"{mended(run, condition.message)}"
        f"kubectl inferencerun retry {run.name} -n {run.namespace}   # once it is mended\n"
        "a changed spec, or a commit of the worker that tries, closes the breaker as well",
    )


def mended(run: Run, message: str) -> str:
    """The command that mends what opened the breaker, as a line; nothing where the message alone says it."""
    missing = MISSING.search(message)
    if missing is not None:
        return f"{missing_fix(run, missing[1], missing[2])}\n"
    if "ModelError" in message:
        return f"{edit(run, 'spec.model, and spec.resume: Restart with it; or mend the model itself')}\n"
    if any(reason in message for reason in IMAGE_REASONS):
        return f"{edit(run, IMAGE)}\n"
    if "the store refused" in message:
        return f"{edit(run, 'the credentials of workers in spec.workers.template: envFrom, or serviceAccountName')}\n"
    return ""


def failures(facts: Facts, run: Run) -> Iterator[Finding]:
    """Recent failures that count, the newest of each class; what was before somebody stepped in is history."""
    condition = run.conditions.get(ConditionType.CIRCUIT_OPEN)
    if condition is not None and condition.status == "True":
        return  # told there
    recent = [
        item
        for item in run.last_failures
        if item.failure_class not in FREE
        and item.at is not None
        and facts.now - item.at <= RECENT
        and (run.begun_at is None or item.at >= run.begun_at)
    ]
    newest = {item.failure_class: item for item in recent}
    counts = Counter(item.failure_class for item in recent)
    for kind, item in newest.items():
        has_progressed = run.failing_since is None or (item.at is not None and item.at < run.failing_since)
        since = " The run has progressed since." if has_progressed else ""
        does = f"kubectl inferencerun logs {run.name} -n {run.namespace} --previous --worker {item.pod}"
        if kind == FailureClass.IMAGE_PULL:  # it has said nothing
            does = edit(run, IMAGE)
        elif kind == FailureClass.OUT_OF_MEMORY:
            memory = "resources.limits.memory of container worker in spec.workers.template"
            does = f"{edit(run, f'{memory}, or spec.model.maxTokensPerBatch')}\n{does}"
        yield Finding(
            code=f"Workers{kind}",
            severity=Severity.NOTE if has_progressed else Severity.HINDERS,
            summary=f"{counts[kind]} worker(s) ended as {kind} in the last {RECENT.seconds // 60} minutes.{since}",
            evidence=failure_text((item,), told=item.advice),
            fix="\n".join(filter(None, [does, item.advice])),
        )


PODS_NAMED = 5
"""In one command."""
SLOW_S = 120.0
"""A worker on a slow disk may take so long until it asks for a shard."""


def idle(facts: Facts, run: Run) -> Iterator[Finding]:
    """Workers that run and take no shard: most often they cannot reach the store."""
    # The manifests are newer than what the controller remembers.
    holders = {item.pod for item in facts.store.held} if facts.store is not None else set()
    found = without_shard(run, facts.pods or (), facts.now)
    idle_s = {pod: seconds for pod, seconds in found.items() if pod.name not in holders}
    if not idle_s:
        return
    waited_s = max(idle_s.values())
    severity = Severity.HINDERS if run.num_running_shards else Severity.STOPS
    said = [item for item in facts.silences if item.pod in {pod.name for pod in idle_s}]
    pod = min(pod.name for pod in idle_s)
    if said:
        last = max(said, key=lambda item: item.silent_s)
        yield Finding(
            code="StoreUnreached",
            severity=severity,
            summary=f"{len(idle_s)} worker(s) have taken no shard for {duration_text(waited_s)}: "
            "the store does not answer them.",
            evidence=f"the log of {last.pod}: no answer from {last.store} at {last.endpoint or 'its endpoint'} "
            f"for {duration_text(last.silent_s)}: {last.detail}",
            fix=_reach_fix(run, [*idle_s], is_s3=last.store.startswith("s3:"), endpoint=last.endpoint),
        )
        return
    if waited_s < IDLE_S:
        return
    yield Finding(
        code="NoShardTaken",
        severity=severity if waited_s > SLOW_S else Severity.NOTE,
        summary=f"{len(idle_s)} worker(s) have taken no shard for {duration_text(waited_s)}, though shards are free.",
        evidence=few(pod.name for pod in idle_s),
        fix=f"kubectl inferencerun logs {run.name} -n {run.namespace} --worker {pod}\n"
        "what it waits for is most often the store",
    )


def _reach_fix(run: Run, pods: Sequence[Pod], *, is_s3: bool, endpoint: str) -> str:
    """What lets workers reach their store."""
    named = " ".join(sorted(pod.name for pod in pods)[:PODS_NAMED])
    setting = (
        f"kubectl edit irun {run.name} -n {run.namespace}   # spec.workers.template, for a store of your own:",
        "  spec:",
        "    containers:",
        "      - name: worker",
        '        env: [{name: AWS_ENDPOINT_URL_S3, value: "http://HOST:PORT"}]',
        f"kubectl delete pod {named} -n {run.namespace}   # a worker keeps the template it was made with",
    )
    policy = f"kubectl get networkpolicy -n {run.namespace}   # egress to {endpoint or 'the endpoint'} must be allowed"
    return "\n".join((*(setting if is_s3 else ()), policy))


def silence(facts: Facts, run: Run) -> Iterator[Finding]:
    """Workers that commit nothing."""
    silent = [item for item in (facts.store.held if facts.store else ()) if item.is_stale]
    if silent:
        worst = max(silent, key=lambda item: item.silent_s)
        yield Finding(
            code="Stalled",
            severity=Severity.HINDERS,
            summary=f"{len(silent)} worker(s) have committed nothing for {duration_text(worst.silent_s)}.",
            evidence=f"{worst.pod} on {worst.node} holds shard {worst.shard}",
            fix=f"kubectl inferencerun logs {run.name} -n {run.namespace} --worker {worst.pod}\n"
            f"kubectl delete pod {worst.pod} -n {run.namespace}   # if it hangs",
        )


def shards(facts: Facts, run: Run) -> Iterator[Finding]:
    """Shards that have failed or wait, and records in quarantine."""
    if run.num_failed_shards:
        yield Finding(
            code="FailedShards",
            severity=Severity.HINDERS,
            summary=f"{run.num_failed_shards} of {run.num_shards} shards have spent their budget of failures.",
            evidence=failure_text(run.last_failures),
            fix=f"kubectl inferencerun failures {run.name} -n {run.namespace}\n"
            f"kubectl inferencerun retry {run.name} -n {run.namespace}   # once it is mended",
        )
    store = facts.store
    if store is not None and store.num_waiting_shards and store.next_claim_at is not None and not run.ready:
        left_s = (store.next_claim_at - facts.now).total_seconds()
        yield Finding(
            code="Backoff",
            severity=Severity.NOTE,
            summary=f"{store.num_waiting_shards} shard(s) wait after failures before they are tried again.",
            evidence=f"the first in {duration_text(max(0.0, left_s))}",
            fix=f"kubectl inferencerun retry {run.name} -n {run.namespace} --only-wake   # or wait",
        )
    if run.num_quarantined:
        yield quarantine(run)


def quarantine(run: Run) -> Finding:
    """Records without a row."""
    return Finding(
        code="Quarantine",
        severity=Severity.NOTE,
        summary=f"{run.num_quarantined} record(s) are in quarantine: they have no row.",
        evidence="",
        fix=f"kubectl inferencerun quarantine {run.name} -n {run.namespace}",
    )


def waste(run: Run) -> Iterator[Finding]:
    """GPU time that ends in nothing."""
    if run.num_restarts < MIN_RESTARTS or not 0 < run.goodput < LOW_GOODPUT or not run.ready:
        return
    evictions = run.by_class.get(FailureClass.SPOT_EVICTION, 0)
    by_class = ", ".join(f"{number} {name}" for name, number in sorted(run.by_class.items()))
    yield Finding(
        code="LowGoodput",
        severity=Severity.HINDERS,
        summary=f"It progresses, but only {run.goodput:.0%} of the GPU time ends in committed checkpoints.",
        evidence=f"{run.num_restarts} restarts: {by_class}",
        fix="checkpoint more often (spec.checkpoint.profile: spot), or take on-demand nodes (capacity.prefer: onDemand)"
        if 2 * evictions > run.num_restarts
        else f"kubectl inferencerun failures {run.name} -n {run.namespace}",
    )
