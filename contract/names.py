"""Names that two parts must agree on: exit codes, failure classes, environment variables, phases.

Constants only. Each carries one line that says what it means.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

API_GROUP = "inferencerun.dev"
API_VERSION = "v1alpha1"
KIND = "InferenceRun"

ENV_SETTINGS = "INFERENCERUN_SETTINGS"
"""JSON text of `contract.settings.WorkerSettings`: everything a worker must know of its run."""
ENV_POD_NAME = "INFERENCERUN_POD_NAME"
"""Name of the pod (or local process) a worker runs in; goes into `owner.pod`."""
ENV_POD_UID = "INFERENCERUN_POD_UID"
"""Unique id of the pod (or local process); goes into `owner.uid` and keys the release of its shards."""
ENV_NODE_NAME = "INFERENCERUN_NODE_NAME"
"""Node (or host) a worker runs on; goes into `owner.node`."""
ENV_TERMINATION_LOG = "INFERENCERUN_TERMINATION_LOG"
"""Path of the flight recorder file; the kubelet's default is /dev/termination-log."""
ENV_LIFELINE_FD = "INFERENCERUN_LIFELINE_FD"
"""File descriptor of a pipe held open by the local coordinator: end of file means the coordinator is gone, drain."""
LIFELINE_RELEASE = b"r"
"""Sent on it before a SIGTERM: this drain is intended; give the shard back."""
LIFELINE_KEEP = b"k"
"""Sent on it before a SIGTERM: this drain is held against the shard; leave it to the coordinator, who charges it."""
ENV_CACHE_DIR = "INFERENCERUN_CACHE_DIR"
"""Directory for model files downloaded from a store; shared by the workers of a node. Default: ~/.cache/inferencerun."""
ENV_METRICS_PORT = "INFERENCERUN_METRICS_PORT"
"""TCP port on which a worker serves its metrics to Prometheus; unset or 0 = none."""
ENV_METRICS_HOST = "INFERENCERUN_METRICS_HOST"
"""Address it listens on; unset = all."""
PORT_METRICS = "metrics"
"""Name of that port on a worker's container: what a PodMonitor selects."""
ENV_VIRAL_MODE = "VIRNUCPRO_VIRAL_CHECKPOINT_MODE"
"""`true` selects the `viral` checkpoint profile when the spec names none (alias of the system this descends from)."""

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
"""On every worker pod; its value is MANAGED_BY. The controller's pod watch selects by it."""
MANAGED_BY = "inferencerun-operator"
LABEL_RUN = "inferencerun.dev/run"
"""Name of the run, cut to a label's 63 characters: for people. LABEL_RUN_UID tells runs apart."""
LABEL_RUN_UID = "inferencerun.dev/run-uid"
"""metadata.uid of the run that a worker pod belongs to."""
LABEL_SLOT = "inferencerun.dev/slot"
LABEL_ATTEMPT = "inferencerun.dev/attempt"
LABEL_CAPACITY = "inferencerun.dev/capacity"
"""On a worker pod of a run that prefers spot: the capacity it was started on."""
CAPACITY_SPOT = "spot"
CAPACITY_ON_DEMAND = "onDemand"
LABEL_GENERATION = "inferencerun.dev/generation"
"""Generation in the store (`run.json`) that a worker pod works on; not metadata.generation."""
ANNOTATION_INTENT = "inferencerun.dev/intent"
"""On a worker pod that the controller is about to delete: why (`controller.observed.Intent`)."""
ANNOTATION_AVOIDS = "inferencerun.dev/avoids"
"""On a worker pod: the nodes, by name and parted by spaces, that it keeps away from because their breaker was open."""
ANNOTATION_RETRY = "inferencerun.dev/retry"
"""On a run: set to another text than before (the time, say), it closes the run's breakers, begins its waits and its deadline
anew, and lets a run that has failed go on."""
CONTAINER_WORKER = "worker"
"""Name of the container that runs the worker; others in its pod (sidecars) say nothing about it."""

MAX_LOG_BYTES = 65_536
"""So much is kept of the end of a failed worker's log."""
MAX_TERMINATION_MESSAGE_BYTES = 4096
"""The kubelet keeps this much of a container's termination message and cuts the rest."""


class ExitCode(IntEnum):
    """Exit codes of a worker: the one table for both sides."""

    NO_WORK_LEFT = 0
    """Every shard is final or held by somebody else."""
    INVALID = 64
    """Bad spec or input; the same pod would fail again."""
    STORE_REFUSED = 69
    """Credentials, bucket or a store without working conditional puts."""
    TRANSIENT = 75
    """Store unreachable, or the model process kept dying."""
    NO_PROGRESS = 76
    """No batch finished within the no-progress timeout."""
    GPU_HARDWARE = 77
    """The device is broken: ECC, Xid, fallen off the bus."""
    MEMORY = 78
    """Host or GPU memory exhausted beyond what splitting a batch can mend."""
    FENCED = 79
    """Another epoch owns the shard and there was nothing else to do."""
    DRAINED = 143
    """SIGTERM was honoured: finished rows are committed, the shard is released."""


class FailureClass(StrEnum):
    """Why a worker ended, in the order of judgement (docs/failure-modes.md says what each costs)."""

    DONE = "Done"
    INTENDED = "Intended"
    SPOT_EVICTION = "SpotEviction"
    NODE_LOST = "NodeLost"
    NODE_REJECTED = "NodeRejected"
    GPU_HARDWARE = "GpuHardware"
    OUT_OF_MEMORY = "OutOfMemory"
    POISON_INPUT = "PoisonInput"
    DISK_PRESSURE = "DiskPressure"
    CONFIGURATION = "Configuration"
    IMAGE_PULL = "ImagePull"
    CRASH_LOOP = "CrashLoop"
    TRANSIENT = "Transient"


class QuarantineClass(StrEnum):
    """Why a record has no row in any checkpoint."""

    INVALID_RECORD = "InvalidRecord"
    """The reader or tokeniser refused it: empty, illegal letter, not JSON."""
    TOO_LONG = "TooLong"
    """Longer than maxLength under `onTooLong: quarantine`."""
    POISON_INPUT = "PoisonInput"
    """It killed the model process, or made it raise, twice alone."""
    NON_FINITE = "NonFinite"
    """Its row held NaN or infinity, in fp32 too."""
    OUT_OF_MEMORY = "OutOfMemory"
    """It does not fit the device alone."""


class Phase(StrEnum):
    """`status.phase` of a run."""

    PENDING = "Pending"
    PLANNING = "Planning"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    CIRCUIT_OPEN = "CircuitOpen"
    FINALIZING = "Finalizing"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """`status.conditions[].type` of a run."""

    ACCEPTED = "Accepted"
    PLANNED = "Planned"
    PROGRESSING = "Progressing"
    SUSPENDED = "Suspended"
    CIRCUIT_OPEN = "CircuitOpen"
    DEGRADED = "Degraded"
    COMPLETE = "Complete"
    FAILED = "Failed"


class CheckpointReason(StrEnum):
    """Which trigger wrote a checkpoint."""

    SEQUENCE_THRESHOLD = "sequence_threshold"
    """everyRecords reached."""
    TIME_THRESHOLD = "time_threshold"
    """everySeconds reached."""
    EMERGENCY_TIME_OVERRIDE = "emergency_time_override"
    """emergencySeconds reached, even inside a batch window."""
    BYTES_THRESHOLD = "bytes"
    """everyBytes pending: what is pending must be uploadable within the grace period."""
    SHUTDOWN = "shutdown"
    """Drain, or the end of the shard."""
    GAP = "gap"
    """The next record to do is not adjacent: a checkpoint covers one run of records."""
    QUARANTINE = "quarantine"
    """A verdict that cost restarts of the model process was reached; it must not be paid for twice."""
