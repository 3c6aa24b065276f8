"""Findings about the run as it is written: refused, suspended, over; its store and input. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from cli.kubectl.diagnosis.finding import Finding, Severity, failure_text
from cli.kubectl.diagnosis.trouble import quarantine
from cli.kubectl.facts import Facts, Run
from cli.texts import duration_text
from contract.names import ConditionType

SKEW_S = 300.0
"""S3 refuses requests whose time is off by 15 minutes; by a third of that, something is wrong with a clock.
Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html (RequestTimeTooSkewed)"""


def ended(run: Run) -> Iterator[Finding]:
    """A run that is over: why it failed, or what is left open."""
    failed = run.conditions.get(ConditionType.FAILED)
    if run.phase == "Failed":
        reason = failed.reason if failed is not None else ""
        message = (failed.message if failed is not None else "") or run.message
        yield Finding(
            code=f"Failed{reason}",
            severity=Severity.STOPS,
            summary="The run has given up; what is committed stays.",
            evidence=" | ".join(filter(None, [message, failure_text(run.last_failures, told=message)])),
            fix=_FAILED_FIXES.get(
                reason, "kubectl inferencerun failures {0} -n {1}; mend it, then kubectl inferencerun retry {0} -n {1}"
            ).format(run.name, run.namespace),
        )
    if run.num_quarantined and run.phase == "Succeeded":
        yield quarantine(run)


_FAILED_FIXES = {
    "DeadlineExceeded": 'kubectl patch irun {0} -n {1} --type merge -p \'{{"spec":{{"activeDeadlineSeconds":null}}}}\'',
    "TooManyQuarantined": "kubectl inferencerun quarantine {0} -n {1}; mend the model, or raise "
    "failurePolicy.maxQuarantinedRecords; then kubectl inferencerun retry {0} -n {1} --quarantined",
}


def suspended(run: Run) -> Finding:
    """The run is suspended."""
    return Finding(
        code="Suspended",
        severity=Severity.STOPS,
        summary="The run is suspended: no worker is started.",
        evidence="spec.suspend is true" + (f"; its queue {run.queue!r} may have set it" if run.queue else ""),
        fix=f"kubectl inferencerun resume {run.name} -n {run.namespace}",
    )


def acceptance(facts: Facts, run: Run) -> Iterator[Finding]:
    """What the controller refuses, and a deletion that waits."""
    accepted, planned = run.conditions.get(ConditionType.ACCEPTED), run.conditions.get(ConditionType.PLANNED)
    if accepted is not None and accepted.status == "False":
        yield Finding(
            code=f"NotAccepted{accepted.reason}",
            severity=Severity.STOPS,
            summary="The controller does not accept the run as it is written.",
            evidence=accepted.message,
            fix=_input_fix(run)
            if _is_of_input(accepted.message)
            else _ACCEPTED_FIXES.get(accepted.reason, "kubectl edit irun {0} -n {1}").format(run.name, run.namespace),
        )
    if planned is not None and planned.status == "False" and planned.reason not in {"", "Planning", "Planned"}:
        yield Finding(
            code=f"NotPlanned{planned.reason}",
            severity=Severity.STOPS,
            summary="The controller cannot use the run's store or input.",
            evidence=planned.message,
            fix=_PLANNED_FIXES.get(
                planned.reason, "mend what the message names; the controller looks again within a minute"
            ),
        )
    if run.is_deleting:
        yield Finding(
            code="Deleting",
            severity=Severity.STOPS,
            summary=f"The run is being deleted: it goes once its {len(facts.pods or ())} pod(s) have drained.",
            evidence="",
            fix="wait; what is committed stays, and the same run applied again goes on from there",
        )


_ACCEPTED_FIXES = {
    "Immutable": "make another run: kubectl get irun {0} -n {1} -o yaml, with a new name and output",
    "IncompatibleRun": "choose another spec.output.uri, or set spec.resume: Restart to open a new generation there",
    "PathUnusable": "kubectl edit irun {0} -n {1}: spec.output.uri and spec.input.uris in a bucket, s3://BUCKET/PREFIX or "
    "gs://BUCKET/PREFIX",
    "OutputInUse": "wait for the other run, delete it, or choose another spec.output.uri in a new run",
}


def _input_fix(run: Run) -> str:
    if run.num_shards:
        return "put the objects there: the input of a run that has begun stays what it is; another input is another run"
    return (
        f"kubectl edit irun {run.name} -n {run.namespace}: correct spec.input, which is accepted while nothing is planned "
        "yet; or put the objects there, the controller looks again within a minute"
    )


def _is_of_input(message: str) -> bool:
    """Whether the controller could not list the input, which is said in terms of its field."""
    return message.startswith("input.uris:")


_PLANNED_FIXES = {
    "AccessDenied": "mend what it names; where rights are missing, give them to the controller "
    "(controller.serviceAccount.annotations or controller.envFrom of the chart) and the same to workers",
    "UnsuitableStore": "use a store that honours conditional puts",
    "StoreUnavailable": "check that the store's endpoint can be reached from the controller's pod (AWS_ENDPOINT_URL_S3)",
}


def store(facts: Facts, run: Run) -> Iterator[Finding]:
    """The store as the user's own credentials show it: whoever asks, an unsuitable store or a missing input is one."""
    store = facts.store
    if store is None:
        return
    if store.is_unsuitable:
        yield Finding(
            code="StoreUnsuitable",
            severity=Severity.STOPS,
            summary="The store does not honour conditions on writes, so workers could overwrite each other.",
            evidence=store.problem,
            fix="use another store for spec.output.uri",
        )
    elif store.is_in_pods:
        yield Finding(
            code="StoreUnseen",
            severity=Severity.NOTE,
            summary="The output is a path, and so could not be looked at from here.",
            evidence=store.problem,
            fix="use a bucket in another run, unless the same volume is mounted there in the controller and in all workers",
        )
    elif store.problem:
        yield Finding(
            code="StoreUnseen",
            severity=Severity.NOTE,
            summary="The store could not be looked at from here, with your own credentials; the workers may have others.",
            evidence=store.problem,
            fix="set AWS_PROFILE, or run doctor where the store can be reached, to have it looked at",
        )
    accepted = run.conditions.get(ConditionType.ACCEPTED)
    is_told = accepted is not None and accepted.status == "False" and _is_of_input(accepted.message)
    if store.input_problem and run.num_shards == 0 and not is_told:
        yield Finding(
            code="InputMissing",
            severity=Severity.STOPS,
            summary="The input cannot be listed.",
            evidence=store.input_problem,
            fix=_input_fix(run),
        )
    if store.skew_s is not None and abs(store.skew_s) > SKEW_S:
        yield Finding(
            code="ClockSkew",
            severity=Severity.HINDERS,
            summary="The store's clock and this machine's differ; a store refuses signatures that are off by much.",
            evidence=f"the store is {duration_text(abs(store.skew_s))} {'ahead' if store.skew_s > 0 else 'behind'}",
            fix="set the clock by NTP here, and look whether the nodes' clocks are right",
        )
