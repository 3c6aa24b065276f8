"""Findings about a run at work: breakers, failures, silence, waste. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cli.kubectl.diagnosis.finding import RECENT, Finding, Severity, failure_text
from cli.kubectl.facts import Facts, Run
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
        summary=f"The run's circuit breaker is open: its workers failed so often that none is started.{until}",
        evidence=" | ".join(filter(None, [condition.message, failure_text(run.last_failures)])),
        fix=f"mend it, then kubectl inferencerun retry {run.name} -n {run.namespace}; a commit of the worker that tries "
        "closes the breaker, too",
    )


def failures(facts: Facts, run: Run) -> Iterator[Finding]:
    """Recent failures that count, the newest of each class."""
    condition = run.conditions.get(ConditionType.CIRCUIT_OPEN)
    if condition is not None and condition.status == "True":
        return  # told there
    recent = [
        item
        for item in run.last_failures
        if item.failure_class not in FREE and item.at is not None and facts.now - item.at <= RECENT
    ]
    newest = {item.failure_class: item for item in recent}
    counts = Counter(item.failure_class for item in recent)
    for kind, item in newest.items():
        yield Finding(
            code=f"Workers{kind}",
            severity=Severity.HINDERS,
            summary=f"{counts[kind]} worker(s) ended as {kind} in the last {RECENT.seconds // 60} minutes.",
            evidence=failure_text((item,)),
            fix=item.advice or f"kubectl inferencerun failures {run.name} -n {run.namespace}",
        )


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
            fix=f"kubectl inferencerun logs {run.name} -n {run.namespace} --worker {worst.pod}; if it hangs: "
            f"kubectl delete pod {worst.pod} -n {run.namespace}",
        )


def shards(facts: Facts, run: Run) -> Iterator[Finding]:
    """Shards that have failed or wait, and records in quarantine."""
    if run.num_failed_shards:
        yield Finding(
            code="FailedShards",
            severity=Severity.HINDERS,
            summary=f"{run.num_failed_shards} of {run.num_shards} shards have spent their budget of failures.",
            evidence=failure_text(run.last_failures),
            fix=f"kubectl inferencerun failures {run.name} -n {run.namespace}; mend it, then "
            f"kubectl inferencerun retry {run.name} -n {run.namespace}",
        )
    store = facts.store
    if store is not None and store.num_waiting_shards and store.next_claim_at is not None and not run.ready:
        left_s = (store.next_claim_at - facts.now).total_seconds()
        yield Finding(
            code="Backoff",
            severity=Severity.NOTE,
            summary=f"{store.num_waiting_shards} shard(s) wait after failures before they are tried again.",
            evidence=f"the first in {duration_text(max(0.0, left_s))}",
            fix=f"wait, or kubectl inferencerun retry {run.name} -n {run.namespace} --only-wake",
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
    if run.num_restarts < MIN_RESTARTS or run.goodput >= LOW_GOODPUT or not run.ready:
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
