"""Findings about the run as it is written: refused, suspended, over; its store and input. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from cli.kubectl.diagnosis.finding import Finding, Severity, edit, failure_text
from cli.kubectl.diagnosis.trouble import mended, quarantine
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
                reason,
                f"kubectl inferencerun failures {{0}} -n {{1}}\n{mended(run, message)}"
                "kubectl inferencerun retry {0} -n {1}   # once it is mended",
            ).format(run.name, run.namespace),
        )
    if run.num_quarantined and run.phase == "Succeeded":
        yield quarantine(run)


_FAILED_FIXES = {
    "DeadlineExceeded": 'kubectl patch irun {0} -n {1} --type merge -p \'{{"spec":{{"activeDeadlineSeconds":null}}}}\'',
    "TooManyQuarantined": "kubectl inferencerun quarantine {0} -n {1}\n"
    "kubectl edit irun {0} -n {1}   # a higher failurePolicy.maxQuarantinedRecords, unless the model can be mended\n"
    "kubectl inferencerun retry {0} -n {1} --quarantined",
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
            fix=_accepted_fix(run, accepted.reason, accepted.message),
        )
    if planned is not None and planned.status == "False" and planned.reason not in {"", "Planning", "Planned"}:
        yield Finding(
            code=f"NotPlanned{planned.reason}",
            severity=Severity.STOPS,
            summary="The controller cannot use the run's store or input.",
            evidence=planned.message,
            fix=edit(run, "the bucket in spec.input.uris or spec.output.uri; or create it")
            if "NoSuchBucket" in planned.message and not run.num_shards
            else _PLANNED_FIXES.get(
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


def _accepted_fix(run: Run, reason: str, message: str) -> str:
    """What has a refused run accepted. While nothing is planned, all of its spec may be corrected in place."""
    if _is_of_input(message):
        return _input_fix(run)
    if reason == "Immutable":
        return (
            f"kubectl get irun {run.name} -n {run.namespace} -o yaml   # into a file, for another run: with a name and an "
            "output of its own"
        )
    if reason == "IncompatibleRun":
        first = "what was changed back to what it was" if run.num_shards else "another spec.output.uri"
        return edit(run, f"{first}, or spec.resume: Restart, which opens a new generation there")
    if reason == "OutputInUse":
        own = "" if run.num_shards else f"\n{edit(run, 'another spec.output.uri, to run both at once')}"
        return f"wait: it starts by itself once the other run has ended or is deleted{own}"
    if reason == "PathUnusable":
        return edit(run, "spec.output.uri and spec.input.uris in a bucket: s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
    return edit(run, "what is seen above")


def _input_fix(run: Run) -> str:
    if run.num_shards:
        return "put the objects there: the input of a run that has begun stays what it is; another input is another run"
    return (
        f"{edit(run, 'correct spec.input: that is accepted while nothing is planned')}\n"
        "or put the objects there: the controller looks again within a minute"
    )


def _is_refused(run: Run) -> bool:
    """Whether the controller does not accept the run, and says why."""
    accepted = run.conditions.get(ConditionType.ACCEPTED)
    return accepted is not None and accepted.status == "False"


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
    elif store.is_in_pods and not _is_refused(run):
        yield Finding(
            code="StoreUnseen",
            severity=Severity.NOTE,
            summary="The output is a path, and so could not be looked at from here.",
            evidence=store.problem,
            fix="use a bucket in another run, unless the same volume is mounted there in the controller and in all workers",
        )
    elif store.problem and not store.is_in_pods:
        yield Finding(
            code="StoreUnseen",
            severity=Severity.NOTE,
            summary="The store could not be looked at from here, with your own credentials; the workers may have others.",
            evidence=store.problem,
            fix="set AWS_PROFILE, or run doctor where the store can be reached, to have it looked at",
        )
    is_told = _is_refused(run) and _is_of_input(run.conditions[ConditionType.ACCEPTED].message)
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
