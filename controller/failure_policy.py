"""From the evidence of a worker's end to the verdict: what it was, and who pays. Pure.

`classify` asks the rules in the order of the failure classes; the first that knows an answer gives it. Evidence about
the machine comes before evidence about the program, since a dying machine makes any program look broken. Nothing here
takes a worker's word for success: that is read from the manifests alone.

Who pays (`Charge`) decides what is bounded:
    nobody    evictions, intended stops, lost nodes: free, for ever
    node      points against the node
    records   strikes against those in flight, until one is alone and quarantined
    shard     a budget of failures in a row without progress
    run       its breaker
Every class but the free ones also counts towards the run's breaker, so nothing can go wrong for ever unseen.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from contract.flight import Flight
from contract.manifest import ShardManifest, ShardStatus
from contract.names import ExitCode, FailureClass
from contract.ranges import Ranges, difference
from controller.api import CrashLoopPolicy, FailurePolicy
from controller.memory import Death
from controller.observed import Evidence, Intent, NodeState


class Charge(StrEnum):
    """Who pays for a death."""

    NOBODY = "nobody"
    NODE = "node"
    RECORDS = "records"
    SHARD = "shard"
    RUN = "run"


FREE = frozenset(
    {
        FailureClass.DONE,
        FailureClass.INTENDED,
        FailureClass.SPOT_EVICTION,
        FailureClass.NODE_LOST,
        FailureClass.NODE_REJECTED,
    }
)
"""Classes that count against nothing but the node."""

CHARGES = {
    FailureClass.DONE: Charge.NOBODY,
    FailureClass.INTENDED: Charge.NOBODY,
    FailureClass.SPOT_EVICTION: Charge.NOBODY,
    FailureClass.NODE_LOST: Charge.NODE,
    FailureClass.NODE_REJECTED: Charge.NODE,
    FailureClass.GPU_HARDWARE: Charge.NODE,
    FailureClass.OUT_OF_MEMORY: Charge.SHARD,
    FailureClass.POISON_INPUT: Charge.RECORDS,
    FailureClass.DISK_PRESSURE: Charge.SHARD,
    FailureClass.CONFIGURATION: Charge.RUN,
    FailureClass.IMAGE_PULL: Charge.RUN,
    FailureClass.CRASH_LOOP: Charge.RUN,
    FailureClass.TRANSIENT: Charge.SHARD,
}

NODE_SCORES = {FailureClass.NODE_LOST: 1, FailureClass.NODE_REJECTED: 1, FailureClass.GPU_HARDWARE: 3}

EXIT_CLASSES = {
    ExitCode.NO_WORK_LEFT: FailureClass.DONE,
    ExitCode.INVALID: FailureClass.CONFIGURATION,
    ExitCode.STORE_REFUSED: FailureClass.CONFIGURATION,
    ExitCode.TRANSIENT: FailureClass.TRANSIENT,
    ExitCode.NO_PROGRESS: FailureClass.TRANSIENT,
    ExitCode.GPU_HARDWARE: FailureClass.GPU_HARDWARE,
    ExitCode.MEMORY: FailureClass.OUT_OF_MEMORY,
    ExitCode.FENCED: FailureClass.INTENDED,  # whoever fenced it had taken its shard on purpose
    ExitCode.DRAINED: FailureClass.SPOT_EVICTION,  # unless we sent the SIGTERM, which is asked before
}
"""What a worker's own exit code says when no evidence from outside says more."""

ADVICE = {
    FailureClass.DONE: "nothing to do",
    FailureClass.INTENDED: "nothing to do",
    FailureClass.SPOT_EVICTION: "nothing to do; another worker goes on with its work",
    FailureClass.NODE_LOST: "nothing to do; another worker goes on with its work",
    FailureClass.NODE_REJECTED: "look at the node if it repeats; new workers keep away from it then",
    FailureClass.GPU_HARDWARE: "drain and replace the node; new workers keep away from it",
    FailureClass.OUT_OF_MEMORY: "lower model.maxTokensPerBatch, or give workers more memory",
    FailureClass.POISON_INPUT: "look at the records in flight; the one to blame ends in the quarantine list",
    FailureClass.DISK_PRESSURE: "raise the ephemeral-storage limit of workers, or lower checkpoint.everyBytes",
    FailureClass.CONFIGURATION: "mend what the message names",
    FailureClass.IMAGE_PULL: "check that the registry answers; the pull is tried again",
    FailureClass.CRASH_LOOP: "read the log of the last worker: each ends in the same way before it gets anywhere",
    FailureClass.TRANSIENT: "read the worker's log if it repeats",
}

_HARDWARE_XIDS = frozenset({48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120})
"""ECC, row remapping, NVLink, off the bus, GSP. Not 13, 31, 43, 45: those follow the program to any GPU."""
_XID = re.compile(r"\bxid\s*(?:\([^)]*\))?\s*:?\s*(\d+)")
_GPU_TEXT = re.compile(r"uncorrectable (?:ecc|nvlink) error|fallen off the bus|no healthy devices|device is unhealthy")
_MEMORY_TEXT = re.compile(r"out of memory|outofmemory|cannot allocate memory|bad_alloc|memoryerror|by signal: killed")
_HOST_MEMORY = ("host memory", "container's memory limit")
"""Words of a worker whose parent, or whose model process, was short of it."""
_POISON_TEXT = re.compile(
    r"device-side assert|illegal memory access|unspecified launch failure|misaligned address|illegal instruction"
)
_DISK_TEXT = re.compile(
    r"ephemeral local storage usage exceeds|exceeded its local ephemeral storage|usage of emptydir volume|no space left"
)
_PULL_REFUSED_TEXT = re.compile(
    r"pull access denied|manifest unknown|not found|unauthorized|authentication required|forbidden|invalid reference"
    r"|no basic auth|denied"
)
_NO_PROGRAM_TEXT = re.compile(
    r"\bexec:? .*(?:executable file not found|no such file or directory|permission denied|exec format error"
    r"|not a directory|is a directory)"
)
_GPU_DRIVER_TEXT = re.compile(r"nvidia-container-cli|nvml|nvidia-container-runtime|unresolvable cdi devices|libnvidia")
_UNREACHED_TEXT = re.compile(
    r"could not connect to the endpoint|connect timeout|failed to connect to proxy"
    r"|failed to establish a (?:new )?connection|failed to resolve"
)
"""What the stores' clients say when no connection came about, so that nothing of the store was to blame."""
_UNREACHED_ADVICE = (
    "look whether workers can reach the store: one of your own needs AWS_ENDPOINT_URL_S3 in their environment "
    "(spec.workers.template), and egress that no NetworkPolicy forbids"
)
_CACHE_TROUBLE_TEXT = re.compile(r"failed to sync|have not yet been read at least once")
"""A kubelet that has just started says so of Secrets and Services that are there."""
_SHUTDOWN_REASONS = frozenset({"Terminated", "Shutdown", "NodeShutdown"})
"""Pod reasons of a graceful shutdown of the node, by version: 1.22 and later, before, and of pods bound meanwhile."""
_DELETING_DISRUPTIONS = frozenset(
    {"PreemptionByScheduler", "PreemptionByKubeScheduler", "DeletionByTaintManager", "EvictionByEvictionAPI"}
)
"""Whoever sets the condition for one of these deletes the pod next."""
_REFUSALS = frozenset(
    {
        "UnexpectedAdmissionError",
        "Preempting",
        "NodeAffinity",
        "NodeName",
        "NodePorts",
        "TaintToleration",
        "TopologyAffinityError",
        "SMTAlignmentError",
        "InvalidNodeInfo",
        "UnknownReason",
        "UnexpectedPredicateFailureType",
        "PodOSSelectorNodeLabelDoesNotMatch",
        "PodOSNotSupported",
        "SupplementalGroupsPolicyNotSupported",
    }
)
"""Pod reasons of a kubelet that did not admit the pod. Source: pkg/kubelet/lifecycle/predicate.go and cm/topologymanager."""
_FORBIDDEN = frozenset({"SysctlForbidden", "AppArmor"})
"""Pod reasons of a kubelet that admits no pod with such a setting, on any node of its kind."""
_NEVER_STARTS = {
    "InvalidImageName": "correct the image's name",
    "ErrImageNeverPull": "load the image on the nodes, or let imagePullPolicy pull it",
    "CreateContainerConfigError": "create the Secret, ConfigMap or key that the message names",
    "SignatureValidationFailed": "sign the image, or let the nodes' signature policy allow it",
}
_PULLS = frozenset({"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"})
_NO_SANDBOX = frozenset({"CreatePodSandboxError", "ConfigPodSandboxError", "KillPodSandboxError"})
_NO_START = frozenset({"ContainerCannotRun", "StartError", "RunContainerError", "CreateContainerError"})
"""Reasons of a container that the runtime could not make or start; the message says why."""
_POISON_CODES = frozenset({134, 135, 136, 139})
"""128 + ABRT, BUS, FPE, SEGV."""
_DEADLINE = "DeadlineExceeded"
_KUBELET_STOPS = frozenset({"Evicted", "Preempting", _DEADLINE})
"""Pod reasons for which the kubelet stops a running pod: they say more than the code it ended with."""
_INTENTS = {
    Intent.CHANGES_CAPACITY: "we stopped it: its place changes between spot and on-demand capacity",
    Intent.SCALE_DOWN: "we stopped it: the run needs fewer workers",
    Intent.AVOIDS_IN_VAIN: "we stopped it: it waited for a node, and kept away from one that is tried again",
    Intent.SUSPENDED: "we stopped it: the run is suspended",
    Intent.RUN_ENDED: "we stopped it: the run has ended",
    Intent.CIRCUIT_OPEN: "we stopped it: the run's breaker is open",
    Intent.COORDINATOR_STOPPED: "we stopped it: the coordinator ends",
    Intent.ATTEMPT_TIMEOUT: "we stopped it: it held one shard for longer than workers.attemptTimeoutSeconds",
    Intent.STALLED: "we stopped it: it held a shard for too long without a commit",
}
_NODES = {NodeState.NOT_READY: "not ready", NodeState.TERMINATING: "being taken away", NodeState.GONE: "gone"}
_LOST_NODES = frozenset(_NODES)
_CHARGED_INTENTS = frozenset({Intent.ATTEMPT_TIMEOUT, Intent.STALLED})
_DETAIL_LENGTH = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a death was, on which evidence, and who pays."""

    failure_class: FailureClass
    evidence: str
    """One sentence: what was seen."""
    charged_to: Charge
    advice: str
    """What a person can do; empty when there is nothing to do."""
    node_score: int = 0
    is_permanent: bool = False
    """Trying again gives the same: a shard fails at once, the run's breaker opens at once."""
    is_blind: bool = False
    """Killed by somebody unknown."""
    is_host_memory: bool = False
    """Out of the host's memory, not of a device's: a higher limit may help."""

    @property
    def is_counted(self) -> bool:
        """Whether it counts at all."""
        return self.failure_class not in FREE


@dataclass(frozen=True, slots=True)
class _Case:
    """Evidence, read once."""

    seen: Evidence
    manifest: ShardManifest | None

    @property
    def code(self) -> int | None:
        if self.seen.exit_code is None and self.seen.signal is not None:
            return 128 + self.seen.signal
        return self.seen.exit_code

    @property
    def is_own_word(self) -> bool:
        """Whether the exit code is one that a worker chose, so that texts need not be searched."""
        return self.code in set(ExitCode) and self.code != 0

    @property
    def text(self) -> str:
        detail = self.seen.flight.detail if self.seen.flight else ""
        return "\n".join((*self.seen.messages, detail)).lower()

    @property
    def detail(self) -> str:
        """The most telling message, cut to a line."""
        own = self.seen.flight.detail if self.seen.flight else ""
        lines = (own or next((item for item in reversed(self.seen.messages) if item.strip()), "")).strip().splitlines()
        return lines[-1][:_DETAIL_LENGTH].rstrip(" .") if lines else ""

    @property
    def start_failure(self) -> str:
        """Why the runtime could not start it; empty when it could."""
        reasons = (self.seen.waiting_reason, self.seen.container_reason)
        return next((reason for reason in reasons if reason in _NO_START), "")

    def told(self, what: str) -> str:
        return f"{what}: {self.detail}" if self.detail else what


def classify(seen: Evidence, manifest: ShardManifest | None = None) -> Verdict:
    """The verdict on an ended worker. Never raises; what it does not know is Transient, never success. Pure.

    Args:
        seen: all evidence.
        manifest: the shard it held (or, holding none, the one it last worked on if that is complete); None = none.
    """
    case = _Case(seen, manifest)
    for rule in _RULES:
        verdict = rule(case)
        if verdict is not None:
            return verdict
    return _transient(case)


def _verdict(failure_class: FailureClass, evidence: str, *, advice: str | None = None) -> Verdict:
    return Verdict(
        failure_class=failure_class,
        evidence=evidence,
        charged_to=CHARGES[failure_class],
        advice=ADVICE[failure_class] if advice is None else advice,
        node_score=NODE_SCORES.get(failure_class, 0),
    )


def _done(case: _Case) -> Verdict | None:
    if case.manifest is not None and case.manifest.status is ShardStatus.COMPLETE:
        return _verdict(FailureClass.DONE, f"shard {case.manifest.shard} is complete")
    # Its last words must say so too: a program that is none of our workers ends with 0 as well, each time it is started.
    flight = case.seen.flight
    has_said_so = flight is not None and flight.exit_code == ExitCode.NO_WORK_LEFT
    if case.code == ExitCode.NO_WORK_LEFT and has_said_so and case.manifest is None:
        return _verdict(FailureClass.DONE, "exit 0, and it holds nothing")
    return None


def _intended(case: _Case) -> Verdict | None:
    seen = case.seen
    if seen.intent is not None and seen.intent not in _CHARGED_INTENTS:
        return _verdict(FailureClass.INTENDED, _INTENTS[seen.intent])
    if seen.has_termination_target:
        return _verdict(FailureClass.INTENDED, "the queue or job controller asked for its end (TerminationTarget)")
    if case.code == ExitCode.FENCED:
        return _verdict(FailureClass.INTENDED, case.told("exit 79: its shard had been given to another worker"))
    # A node that is lost gets its pods deleted, before 1.26 without another word.
    is_lost = bool(seen.disruption_reason) or seen.pod_reason == "NodeLost"
    is_plain_deletion = seen.has_deletion_timestamp and case.code is None and not is_lost
    if is_plain_deletion and not seen.is_spot_node and seen.node_state not in _LOST_NODES:
        return _verdict(FailureClass.INTENDED, "somebody deleted it")
    return None


def _spot_eviction(case: _Case) -> Verdict | None:
    seen = case.seen
    if seen.intent in _CHARGED_INTENTS:
        return None
    # A node short of memory or room evicts by itself; that speaks against the node, and must be bounded by its score.
    is_own_shortage = seen.disruption_reason == "TerminationByKubelet" and seen.pod_reason in {"Evicted", "Preempting"}
    # A condition whose deletion never came is stale; an end that no signal brings about is then the worker's own.
    is_stale = (
        seen.disruption_reason in _DELETING_DISRUPTIONS
        and not seen.has_deletion_timestamp
        and case.code not in {None, 0, 137, ExitCode.DRAINED}
    )
    if seen.disruption_reason and not (is_own_shortage or is_stale):
        return _verdict(FailureClass.SPOT_EVICTION, case.told(f"the pod was disrupted ({seen.disruption_reason})"))
    if seen.pod_reason in _SHUTDOWN_REASONS:
        return _verdict(FailureClass.SPOT_EVICTION, case.told(f"its node shut down (pod reason {seen.pod_reason})"))
    if seen.is_spot_node and seen.node_state in _LOST_NODES:
        return _verdict(FailureClass.SPOT_EVICTION, f"its spot node is {_NODES[seen.node_state]}")
    if seen.pod_reason in _KUBELET_STOPS:
        return None
    if case.code == ExitCode.DRAINED:
        return _verdict(FailureClass.SPOT_EVICTION, "it was asked to stop (SIGTERM) and drained")
    if seen.has_deletion_timestamp and case.code == 137 and not _is_out_of_memory(seen):
        return _verdict(FailureClass.SPOT_EVICTION, "it was deleted, and killed when the grace period was over")
    if seen.has_deletion_timestamp and case.code == 0:
        return _verdict(FailureClass.SPOT_EVICTION, "it was deleted, and ended with 0 before its work was done")
    return None


def _node_lost(case: _Case) -> Verdict | None:
    seen = case.seen
    if seen.node_state in _LOST_NODES:
        return _verdict(FailureClass.NODE_LOST, f"its node is {_NODES[seen.node_state]}")
    # An eviction loses the record of its containers too; then the pod's own reason says more.
    is_lost_record = seen.container_reason == "ContainerStatusUnknown" and not seen.pod_reason
    if seen.pod_reason == "NodeLost" or is_lost_record:
        reason = seen.pod_reason or seen.container_reason
        return _verdict(FailureClass.NODE_LOST, f"the node lost track of it ({reason})")
    if case.code == 255 and seen.container_reason == "Unknown" and not seen.pod_reason:
        return _verdict(FailureClass.NODE_LOST, "exit 255: it was lost while the container runtime was down")
    if seen.is_vanished:
        # Nothing speaks against a node whose pod somebody removed; and a node that is gone needs no avoiding.
        return replace(_verdict(FailureClass.NODE_LOST, "it vanished, and nobody saw it end"), node_score=0)
    # Runtimes also report 255 for what ran when they restarted. No worker ends so; but a module of the user may.
    was_cut_off = case.code == 255 and seen.flight is not None and seen.flight.exit_code is None
    is_killed = case.code == 137 and seen.has_started and not _is_out_of_memory(seen)
    if seen.intent is None and not seen.pod_reason and (is_killed or was_cut_off):
        what = "SIGKILL from outside: the kernel reports no lack of memory"
        return replace(
            _verdict(FailureClass.NODE_LOST, "exit 255 in the middle of its work" if was_cut_off else what),
            charged_to=Charge.NOBODY,
            node_score=0,
            is_blind=True,
            advice="look for what kills workers if it repeats; another worker goes on with its work",
        )
    return None


def _node_rejected(case: _Case) -> Verdict | None:
    seen = case.seen
    # Before 1.26 a kubelet that evicts drops the containers' statuses, also where the pod's own limits were to blame.
    is_shortage = seen.pod_reason == "Evicted" and (
        "node was low on resource" in case.text or not (seen.has_started or _DISK_TEXT.search(case.text))
    )
    if seen.pod_reason in _REFUSALS or seen.pod_reason.startswith("OutOf") or is_shortage:
        return _verdict(FailureClass.NODE_REJECTED, case.told(f"the node refused or removed it ({seen.pod_reason})"))
    if seen.waiting_reason == "ContainerCreating":
        what = "the node has not started it in half an hour (ContainerCreating)"
        return _verdict(FailureClass.NODE_REJECTED, case.told(what))
    if seen.waiting_reason in _NO_SANDBOX:
        return _verdict(FailureClass.NODE_REJECTED, case.told(f"the node cannot set it up ({seen.waiting_reason})"))
    return None


def _gpu_hardware(case: _Case) -> Verdict | None:
    if case.code == ExitCode.GPU_HARDWARE:
        return _verdict(FailureClass.GPU_HARDWARE, case.told("exit 77: the device reports a fault"))
    if case.code in {ExitCode.INVALID, ExitCode.STORE_REFUSED, ExitCode.MEMORY} or _is_out_of_memory(case.seen):
        return None
    if case.seen.is_device_unhealthy:
        return _verdict(FailureClass.GPU_HARDWARE, case.told("its device is reported as unhealthy"))
    if case.start_failure and _GPU_DRIVER_TEXT.search(case.text):
        return _verdict(FailureClass.GPU_HARDWARE, case.told("the node's GPU driver does not let it start"))
    xids = {int(number) for number in _XID.findall(case.text)} & _HARDWARE_XIDS
    if xids:
        return _verdict(FailureClass.GPU_HARDWARE, f"Xid {min(xids)} in its messages")
    if found := _GPU_TEXT.search(case.text):
        return _verdict(FailureClass.GPU_HARDWARE, f"its messages say '{found[0]}'")
    return None


def _out_of_memory(case: _Case) -> Verdict | None:
    if _is_out_of_memory(case.seen):
        if not case.seen.has_started:
            advice = "raise the memory limit of the init container in workers.template"
            return _verdict(FailureClass.OUT_OF_MEMORY, "the kernel killed an init container for memory", advice=advice)
        return replace(_verdict(FailureClass.OUT_OF_MEMORY, "the kernel killed it for memory"), is_host_memory=True)
    if case.code == ExitCode.MEMORY:
        verdict = _verdict(FailureClass.OUT_OF_MEMORY, case.told("exit 78: memory exhausted"))
        return replace(verdict, is_host_memory=any(words in case.text for words in _HOST_MEMORY))
    if not case.is_own_word and _MEMORY_TEXT.search(case.text):
        return _verdict(FailureClass.OUT_OF_MEMORY, case.told("it ran out of memory"))
    return None


def _poison_input(case: _Case) -> Verdict | None:
    has_batch = bool(in_flight(case.seen.flight, case.manifest))
    found = None if case.is_own_word else _POISON_TEXT.search(case.text)
    if has_batch and (case.code in _POISON_CODES or found):
        what = f"exit {case.code}" if case.code in _POISON_CODES else f"'{found[0] if found else ''}'"
        flight = case.seen.flight
        assert flight is not None
        return _verdict(FailureClass.POISON_INPUT, f"{what} with records {flight.first}-{flight.next} in flight")
    return None


def _disk_pressure(case: _Case) -> Verdict | None:
    # A worker that cannot write ends as one that cannot reach its store, and says why.
    is_open = not case.is_own_word or case.code == ExitCode.TRANSIENT
    if is_open and (found := _DISK_TEXT.search(case.text)):
        what = "the disk is full" if found[0] == "no space left" else "it used more of the disk than it may"
        return _verdict(FailureClass.DISK_PRESSURE, case.told(what))
    return None


def _configuration(case: _Case) -> Verdict | None:
    seen = case.seen
    permanent = replace(_verdict(FailureClass.CONFIGURATION, ""), is_permanent=True)
    if case.code == ExitCode.INVALID:
        # Only one object may be bad: a worker that got as far as a shard fails that shard, and the others go on.
        refused = replace(permanent, evidence=case.told("exit 64: bad spec or input"))
        if case.manifest is not None:
            return replace(refused, charged_to=Charge.SHARD)
        # Applying what has not changed does nothing on a cluster, though the mistake may have been in an image.
        advice = "mend what the message names, then apply the run again, or 'inferencerun retry' if it has not changed"
        return replace(refused, advice=advice)
    if case.code == ExitCode.STORE_REFUSED:
        advice = "check the credentials and the buckets of input.uris and output.uri"
        return replace(permanent, evidence=case.told("exit 69: the store refused"), advice=advice)
    is_passing = seen.waiting_reason == "CreateContainerConfigError" and _CACHE_TROUBLE_TEXT.search(case.text)
    if seen.waiting_reason in _NEVER_STARTS and not is_passing:
        evidence, advice = case.told(f"it cannot start ({seen.waiting_reason})"), _NEVER_STARTS[seen.waiting_reason]
        return replace(permanent, evidence=evidence, advice=advice)
    if seen.waiting_reason in _PULLS and _PULL_REFUSED_TEXT.search(case.text):
        advice = "correct the image's name, or give the worker's service account access to its registry"
        return replace(permanent, evidence=case.told(f"the image is refused ({seen.waiting_reason})"), advice=advice)
    if case.start_failure and (case.code in {126, 127} or _NO_PROGRAM_TEXT.search(case.text)):
        advice = "correct the command in workers.template, or take an image that has it"
        return replace(permanent, evidence=case.told(f"its command cannot run ({case.start_failure})"), advice=advice)
    if seen.pod_reason in _FORBIDDEN:
        advice = "take the setting that the message names out of workers.template, or let the nodes allow it"
        return replace(permanent, evidence=case.told(f"no node admits it ({seen.pod_reason})"), advice=advice)
    return None


def _image_pull(case: _Case) -> Verdict | None:
    if case.seen.waiting_reason in _PULLS:
        return _verdict(FailureClass.IMAGE_PULL, case.told(f"the image does not come ({case.seen.waiting_reason})"))
    return None


def _crash_loop(case: _Case) -> Verdict | None:
    if case.seen.waiting_reason == "CrashLoopBackOff":
        return replace(_verdict(FailureClass.CRASH_LOOP, case.told("CrashLoopBackOff")), is_permanent=True)
    return None


def _transient(case: _Case) -> Verdict:
    seen = case.seen
    if seen.intent in _CHARGED_INTENTS:
        advice = "raise workers.attemptTimeoutSeconds" if seen.intent is Intent.ATTEMPT_TIMEOUT else None
        return _verdict(FailureClass.TRANSIENT, _INTENTS[seen.intent], advice=advice)
    if seen.pod_reason == _DEADLINE:
        advice = "raise activeDeadlineSeconds in workers.template, or leave it out"
        return _verdict(FailureClass.TRANSIENT, "its pod ran longer than activeDeadlineSeconds", advice=advice)
    if case.code == 0 and case.manifest is not None:
        return _verdict(FailureClass.TRANSIENT, f"exit 0, though it holds shard {case.manifest.shard}")
    if case.code == 0:
        advice = (
            "look whether the image and its command start our worker, and whether the model's module ends the process"
        )
        return _verdict(FailureClass.TRANSIENT, "exit 0 without the last words of a worker", advice=advice)
    if case.code is not None:
        is_unreached = case.code == ExitCode.TRANSIENT and _UNREACHED_TEXT.search(case.text)
        advice = _UNREACHED_ADVICE if is_unreached else None
        return _verdict(FailureClass.TRANSIENT, case.told(f"exit {case.code}"), advice=advice)
    reason = seen.waiting_reason or seen.pod_reason or seen.container_reason or "no evidence at all"
    return _verdict(FailureClass.TRANSIENT, case.told(f"it ended ({reason})"))


def _is_out_of_memory(seen: Evidence) -> bool:
    return seen.is_oom_killed or seen.container_reason == "OOMKilled"


_RULES: tuple[Callable[[_Case], Verdict | None], ...] = (
    _done,
    _intended,
    _spot_eviction,
    _node_lost,
    _node_rejected,
    _gpu_hardware,
    _out_of_memory,
    _poison_input,
    _disk_pressure,
    _configuration,
    _image_pull,
    _crash_loop,
)


def signature(seen: Evidence) -> str:
    """How a worker ended, without what differs from time to time: equal ones make a crash loop."""
    return f"{_Case(seen, None).code}/{seen.container_reason}/{seen.waiting_reason}/{seen.pod_reason}"


def is_crash_loop(death: Death, *, deaths: tuple[Death, ...], policy: CrashLoopPolicy) -> bool:
    """Whether `death` is one too many of a kind.

    Deaths of one shard alone are no crash loop: its own budget bounds them, and the other shards go on.

    Args:
        death: the latest one.
        deaths: those before, since the run's last progress.
        policy: how many, within how long.
    """
    since = death.at - timedelta(seconds=policy.window_s)
    equal = [item for item in deaths if item.signature == death.signature and item.at > since] + [death]
    shards = {item.shard for item in equal}
    return len(equal) >= policy.failures and (len(shards) > 1 or shards == {None})


def escalated(
    verdict: Verdict, death: Death, *, deaths: tuple[Death, ...], num_kills: int, policy: FailurePolicy
) -> Verdict:
    """`verdict`, seen together with the deaths since the run's last progress. Pure.

    Args:
        verdict: on this death alone.
        death: this death.
        deaths: counted deaths before it.
        num_kills: kills from outside, this one included if it is one.
        policy: limits.
    """
    if verdict.is_blind and num_kills > policy.max_unexplained_kills:
        return replace(
            _verdict(FailureClass.TRANSIENT, f"{verdict.evidence}; number {num_kills} with no commit between"),
            advice="look for what kills the workers: the memory limit, another program, or a person",
            is_blind=True,
        )
    if verdict.failure_class is FailureClass.TRANSIENT and is_crash_loop(
        death, deaths=deaths, policy=policy.crash_loop
    ):
        evidence = f"{verdict.evidence}; the same end {policy.crash_loop.failures} times with no commit between"
        is_explained = verdict.advice != ADVICE[FailureClass.TRANSIENT]
        advice = verdict.advice if is_explained else None
        return replace(_verdict(FailureClass.CRASH_LOOP, evidence, advice=advice), is_permanent=True)
    return verdict


def in_flight(flight: Flight | None, manifest: ShardManifest | None) -> Ranges:
    """Unsettled ordinals of this very shard and epoch that were in the model process when its owner died."""
    if flight is None or manifest is None or flight.first is None or flight.next is None:
        return ()
    if (flight.shard, flight.epoch) != (manifest.shard, manifest.epoch):
        return ()
    return difference(((flight.first, flight.next),), manifest.settled)
