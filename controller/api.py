"""The InferenceRun resource: a typed, frozen spec from the mapping that a user wrote. Pure.

Every field has its default and bounds here; the CRD repeats them. A field that is unknown, or out of bounds, is an
error that names its path, its value and the remedy, and all errors of a resource come in one message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from contract.documents import canonical
from contract.errors import SpecError
from contract.models import check_model
from contract.names import API_GROUP, API_VERSION, CONTAINER_WORKER, ENV_VIRAL_MODE, KIND
from contract.plan import InputFormat
from contract.run_record import ModelIdentity
from contract.settings import CheckpointSettings, ModelSettings, RowKind, TooLong, WorkerSettings
from controller.fields import Section, parse_quantity
from controller.strategic_merge import mistakes

MIB = 2**20
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_URI = re.compile(r"(s3|gs|file)://.+")
_OTHER_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


class ModelName(StrEnum):
    """Model families."""

    KMER = "kmer"
    """Counts of amino-acid pairs: for demos and tests."""
    ESM2 = "esm2"
    TORCH = "torch"
    """Any model: `source` is `module:callable`."""


class Precision(StrEnum):
    """What the forward pass computes in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Dtype(StrEnum):
    """What rows are stored in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Provider(StrEnum):
    """Who runs the nodes: decides by which labels capacity is chosen."""

    NONE = "none"
    GKE = "gke"
    EKS = "eks"
    KARPENTER = "karpenter"


class Capacity(StrEnum):
    """Which capacity to prefer."""

    ON_DEMAND = "onDemand"
    SPOT = "spot"


class Profile(StrEnum):
    """A set of checkpoint thresholds; each can be overridden."""

    DEFAULT = "default"
    VIRAL = "viral"
    SPOT = "spot"


class Resume(StrEnum):
    """What to do with an output that holds this run already."""

    AUTO = "Auto"
    """Go on where it stopped."""
    RESTART = "Restart"
    """Open a new generation; the old one stays until it is told to go."""


PROFILES = {
    Profile.DEFAULT: CheckpointSettings(
        every_records=10_000, every_seconds=300, every_bytes=256 * MIB, emergency_seconds=600
    ),
    Profile.VIRAL: CheckpointSettings(
        every_records=5_000, every_seconds=180, every_bytes=256 * MIB, emergency_seconds=600
    ),
    # An eviction costs what is pending, and a checkpoint next to nothing: time and bytes decide, not records (10,000 of
    # them take 5 s on one GPU and 31 s on another). 64 MiB upload within a 15 s notice at 5 MB/s.
    Profile.SPOT: CheckpointSettings(
        every_records=1_000_000, every_seconds=30, every_bytes=64 * MIB, emergency_seconds=120
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """`spec.input`."""

    uris: tuple[str, ...]
    """Objects, prefixes or globs."""
    format: InputFormat = InputFormat.FASTA
    shard_bytes: int = 64 * MIB
    id_field: str = "id"
    value_field: str | None = "sequence"
    """None = the whole JSON value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """`spec.output`."""

    uri: str
    dtype: Dtype = Dtype.FLOAT32
    kind: RowKind = RowKind.POOLED


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """`spec.model`."""

    name: ModelName
    source: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = Precision.FP32
    max_tokens_per_batch: int = 16384
    max_length: int | None = None
    """None = the model's own limit."""
    on_too_long: TooLong = TooLong.TRUNCATE


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacitySpec:
    """`spec.workers.capacity`."""

    provider: Provider = Provider.NONE
    prefer: Capacity = Capacity.ON_DEMAND
    on_demand_after_pending_s: float | None = None
    """A spot worker pending for longer is replaced by one on demand; None = wait for ever."""
    on_demand_above_evictions_per_hour: int | None = None
    """More evictions than this of a worker in an hour, and new workers are started on demand; None = never."""
    return_to_spot_after_s: float = 3600.0
    """How long on-demand capacity is kept before spot is tried again, by one worker at a time."""
    on_demand_for_last_shards: int = 0
    """With so few shards left, new workers are started on demand: an eviction would delay the end of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersSpec:
    """`spec.workers`."""

    count: int = 1
    gpus_per_worker: int = 1
    gpu_resource: str = "nvidia.com/gpu"
    capacity: CapacitySpec = field(default_factory=CapacitySpec)
    template: Mapping[str, Any] = field(default_factory=dict)
    """A partial PodTemplateSpec."""
    attempt_timeout_s: float | None = None
    """Longest that one worker may hold one shard; None = as long as it takes. A shard that moves on is not at fault for
    being long, and one that does not is caught by the no-progress timeout."""
    no_progress_timeout_s: float = 600.0
    """A worker in which no batch ends for so long gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """`spec.failurePolicy.backoff`: waits before a replacement.

    Those that grow double with each failure in a row, and are drawn between 0 and their value (full jitter).
    """

    replace_s: float = 5.0
    """Up to so long after an eviction or a lost node: no herd, but nothing to wait for either."""
    rejected_s: float = 60.0
    """Up to so long after a node refused a worker, at least 1 s: the scheduler may send it there again."""
    poison_s: float = 1.0
    """After a death that is put down to records."""
    retry_s: float = 1.0
    """Doubles: 2, 4, 8 … times this."""
    retry_cap_s: float = 60.0
    image_pull_s: float = 10.0
    """Doubles likewise."""
    image_pull_cap_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBreakerPolicy:
    """`spec.failurePolicy.nodeBreaker`."""

    score: int = 3
    """Points within the window that open it; a hardware fault is three at once."""
    window_s: float = 1800.0
    avoid_s: float = 3600.0
    """How long new workers keep away; then one probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBreakerPolicy:
    """`spec.failurePolicy.runBreaker`."""

    failures: int = 5
    """Counted failures within the window, with no commit between, that open it."""
    window_s: float = 600.0
    probe_s: float = 60.0
    """Wait before the first probe; doubles with each opening in a row."""
    probe_cap_s: float = 1800.0
    max_openings: int = 6
    """One more in a row fails the run; six take about an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashLoopPolicy:
    """`spec.failurePolicy.crashLoop`."""

    failures: int = 3
    """Equal deaths within the window, with no commit between, that are a crash loop."""
    window_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePolicy:
    """`spec.failurePolicy`: every number of the failure handling."""

    max_shard_retries: int = 3
    """Failures charged to a shard, in a row without progress, that are tried again; one more fails the shard."""
    max_record_strikes: int = 2
    """Failures of a record alone in its worker before it is quarantined; see failure_policy for those of whole workers."""
    max_unexplained_kills: int = 20
    """Workers killed from outside, in a row without a commit, that are let pass; further ones count."""
    max_quarantined_records: int | None = 1000
    """More quarantined records fail the run at once, and it stops spending; None = any number."""
    max_failed_shards: int = 0
    """More failed shards fail the run, once all others are complete."""
    min_tokens_per_batch: int = 256
    """Running out of memory halves the token budget of a shard, but not below this."""
    max_memory_bytes: int | None = None
    """A shard whose workers are killed for memory again and again gets ones with a higher limit, up to this. None = what
    the template sets is never raised."""
    backoff: Backoff = field(default_factory=Backoff)
    node_breaker: NodeBreakerPolicy = field(default_factory=NodeBreakerPolicy)
    run_breaker: RunBreakerPolicy = field(default_factory=RunBreakerPolicy)
    crash_loop: CrashLoopPolicy = field(default_factory=CrashLoopPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """`spec`."""

    input: InputSpec
    output: OutputSpec
    model: ModelSpec
    workers: WorkersSpec = field(default_factory=WorkersSpec)
    checkpoint: CheckpointSettings = PROFILES[Profile.DEFAULT]
    """Profile and overrides, merged."""
    profile: Profile = Profile.DEFAULT
    """The profile that was chosen."""
    is_interval_adapted: bool = False
    """Whether everySeconds follows the evictions that are seen: in the spot profile, unless it was written."""
    failure_policy: FailurePolicy = field(default_factory=FailurePolicy)
    resume: Resume = Resume.AUTO
    is_suspended: bool = False
    active_deadline_s: float | None = None
    ttl_after_finished_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRun:
    """The resource, less its status."""

    name: str
    spec: RunSpec
    resource_generation: int = 1
    """`metadata.generation`: which version of the spec this is."""


def parse_run(resource: Mapping[str, Any], *, viral_mode: str = "") -> InferenceRun:
    """The run that `resource` describes. Pure.

    Args:
        resource: the whole resource, as loaded from YAML or JSON; `status` and unknown metadata are left alone.
        viral_mode: value of VIRNUCPRO_VIRAL_CHECKPOINT_MODE; "true" selects the viral profile where none is named.

    Raises:
        SpecError: one line for each mistake, with path, value and remedy.
    """
    problems: list[str] = []
    if not isinstance(resource, Mapping):
        raise SpecError(f"{resource!r} is not a resource; start the file with 'apiVersion: {API_GROUP}/{API_VERSION}'")
    for name, expected in (("apiVersion", f"{API_GROUP}/{API_VERSION}"), ("kind", KIND)):
        if resource.get(name) != expected:
            problems.append(f"{name}: {resource.get(name)!r} cannot be used; write '{name}: {expected}'")
    top = Section(resource, "resource", problems)
    top.close("apiVersion", "kind", "metadata", "spec", "status")
    metadata = Section(resource.get("metadata"), "metadata", problems)
    name = metadata.text("name")
    if name and not _NAME.fullmatch(name):
        metadata.wrong("name", name, "use at most 253 lower-case letters, digits, '-' and '.'")
    run = InferenceRun(
        name=name,
        spec=_spec(Section(resource.get("spec"), "spec", problems), viral_mode=viral_mode),
        resource_generation=metadata.integer("generation", 1),
    )
    if not any(problem.startswith(("spec.model", "spec.output")) for problem in problems):
        try:
            check_model(_model_settings(run.spec))
        except SpecError as error:
            problems.append(f"spec.{error}")
    if problems:
        raise SpecError(f"{len(problems)} mistake(s) in InferenceRun {name!r}:\n  " + "\n  ".join(problems))
    return run


def _spec(section: Section, *, viral_mode: str) -> RunSpec:
    workers = _workers(section.section("workers"))
    checkpoints = section.section("checkpoint")
    profile, checkpoint = _checkpoint(checkpoints, prefer=workers.capacity.prefer, viral=viral_mode)
    spec = RunSpec(
        input=_input(section.section("input")),
        output=_output(section.section("output")),
        model=_model(section.section("model")),
        workers=workers,
        checkpoint=checkpoint,
        profile=profile,
        is_interval_adapted=profile is Profile.SPOT and not checkpoints.has("everySeconds"),
        failure_policy=_failure_policy(section.section("failurePolicy")),
        resume=section.choice("resume", Resume.AUTO),
        is_suspended=section.boolean("suspend", default=False),
        active_deadline_s=section.optional_seconds("activeDeadlineSeconds"),
        ttl_after_finished_s=section.optional_seconds("ttlSecondsAfterFinished", minimum=0),
    )
    section.close()
    return spec


def _input(section: Section) -> InputSpec:
    spec = InputSpec(
        uris=section.texts("uris"),
        format=section.choice("format", InputFormat.FASTA),
        shard_bytes=section.quantity("shardBytes", 64 * MIB),
        id_field=section.text("idField", "id"),
        value_field=section.nullable_text("valueField", "sequence"),
    )
    for position, uri in enumerate(spec.uris):
        _check_uri(section, f"uris[{position}]", uri)
    section.close()
    return spec


def _output(section: Section) -> OutputSpec:
    spec = OutputSpec(
        uri=section.text("uri"),
        dtype=section.choice("dtype", Dtype.FLOAT32),
        kind=section.choice("kind", RowKind.POOLED),
    )
    _check_uri(section, "uri", spec.uri)
    section.close()
    return spec


def _check_uri(section: Section, name: str, uri: str) -> None:
    if _OTHER_SCHEME.match(uri) and not _URI.fullmatch(uri):
        section.wrong(name, uri, "use s3://BUCKET/KEY, gs://BUCKET/KEY, file:///DIRECTORY or a path")


def _model(section: Section) -> ModelSpec:
    spec = ModelSpec(
        name=section.choice("name", ModelName.KMER),
        source=section.text("source", "") if section.has("source") else "",
        parameters=section.mapping("parameters"),
        precision=section.choice("precision", Precision.FP32),
        max_tokens_per_batch=section.integer("maxTokensPerBatch", 16384),
        max_length=section.optional_integer("maxLength"),
        on_too_long=section.choice("onTooLong", TooLong.TRUNCATE),
    )
    if not section.has("name"):
        section.wrong("name", None, f"name a model: {', '.join(ModelName)}")
    elif spec.name is not ModelName.KMER and not spec.source:
        section.wrong(
            "source",
            None,
            "module:callable of your model is required"
            if spec.name is ModelName.TORCH
            else "a directory or prefix with weights is required, or random:SEED",
        )
    try:
        canonical(spec.parameters)
    except (TypeError, ValueError) as error:
        section.wrong("parameters", dict(spec.parameters), f"use JSON values only ({error})")
    section.close("source")
    return spec


def _workers(section: Section) -> WorkersSpec:
    capacity = section.section("capacity")
    spec = WorkersSpec(
        count=section.integer("count", 1, minimum=0, maximum=10_000),
        gpus_per_worker=section.integer("gpusPerWorker", 1, minimum=0, maximum=16),
        gpu_resource=section.text("gpuResource", "nvidia.com/gpu"),
        capacity=CapacitySpec(
            provider=capacity.choice("provider", Provider.NONE),
            prefer=capacity.choice("prefer", Capacity.ON_DEMAND),
            on_demand_after_pending_s=capacity.optional_seconds("onDemandAfterPendingSeconds"),
            on_demand_above_evictions_per_hour=capacity.optional_integer("onDemandAboveEvictionsPerHour"),
            return_to_spot_after_s=capacity.seconds("returnToSpotAfterSeconds", 3600.0),
            on_demand_for_last_shards=capacity.integer("onDemandForLastShards", 0, minimum=0),
        ),
        template=section.mapping("template"),
        attempt_timeout_s=section.optional_seconds("attemptTimeoutSeconds"),
        no_progress_timeout_s=section.seconds("noProgressTimeoutSeconds", 600.0),
    )
    for path, value, remedy in mistakes(spec.template):
        section.wrong(f"template.{path}", value, remedy)
    capacity.close()
    section.close()
    return spec


def _checkpoint(section: Section, *, prefer: Capacity, viral: str) -> tuple[Profile, CheckpointSettings]:
    """A profile that is named wins, then the environment's, then the one for the capacity; given values override it."""
    profile = section.optional_choice("profile", Profile)
    if profile is None and viral.strip().lower() == "true":
        profile = Profile.VIRAL
    elif viral.strip().lower() not in {"", "true", "false"}:
        section.wrong("profile", viral, f"the environment's {ENV_VIRAL_MODE} must be true, false or unset")
    if profile is None:
        profile = Profile.SPOT if prefer is Capacity.SPOT else Profile.DEFAULT
    base = PROFILES[profile]
    settings = CheckpointSettings(
        every_records=section.integer("everyRecords", base.every_records),
        every_seconds=section.seconds("everySeconds", base.every_seconds),
        every_bytes=section.quantity("everyBytes", base.every_bytes),
        emergency_seconds=section.seconds("emergencySeconds", base.emergency_seconds),
    )
    if settings.emergency_seconds <= settings.every_seconds:
        section.wrong(
            "emergencySeconds",
            settings.emergency_seconds,
            f"emergencySeconds must exceed everySeconds, which is {settings.every_seconds:g} (profile {profile}); set both",
        )
    section.close()
    return profile, settings


def _failure_policy(section: Section) -> FailurePolicy:
    backoff, node = section.section("backoff"), section.section("nodeBreaker")
    run, loop = section.section("runBreaker"), section.section("crashLoop")
    defaults = FailurePolicy()
    max_memory_bytes = section.quantity("maxMemory", 1)
    policy = FailurePolicy(
        max_shard_retries=section.integer("maxShardRetries", defaults.max_shard_retries, minimum=0),
        max_record_strikes=section.integer("maxRecordStrikes", defaults.max_record_strikes),
        max_unexplained_kills=section.integer("maxUnexplainedKills", defaults.max_unexplained_kills, minimum=0),
        max_quarantined_records=section.optional_integer(
            "maxQuarantinedRecords", defaults.max_quarantined_records, minimum=0
        ),
        max_failed_shards=section.integer("maxFailedShards", defaults.max_failed_shards, minimum=0),
        min_tokens_per_batch=section.integer("minTokensPerBatch", defaults.min_tokens_per_batch),
        max_memory_bytes=max_memory_bytes if section.has("maxMemory") else None,
        backoff=Backoff(
            replace_s=backoff.seconds("replaceSeconds", defaults.backoff.replace_s, minimum=0),
            rejected_s=backoff.seconds("rejectedSeconds", defaults.backoff.rejected_s, minimum=0),
            poison_s=backoff.seconds("poisonSeconds", defaults.backoff.poison_s, minimum=0),
            retry_s=backoff.seconds("retrySeconds", defaults.backoff.retry_s, minimum=0),
            retry_cap_s=backoff.seconds("retryCapSeconds", defaults.backoff.retry_cap_s, minimum=0),
            image_pull_s=backoff.seconds("imagePullSeconds", defaults.backoff.image_pull_s, minimum=0),
            image_pull_cap_s=backoff.seconds("imagePullCapSeconds", defaults.backoff.image_pull_cap_s, minimum=0),
        ),
        node_breaker=NodeBreakerPolicy(
            score=node.integer("score", defaults.node_breaker.score),
            window_s=node.seconds("windowSeconds", defaults.node_breaker.window_s),
            avoid_s=node.seconds("avoidSeconds", defaults.node_breaker.avoid_s),
        ),
        run_breaker=RunBreakerPolicy(
            failures=run.integer("failures", defaults.run_breaker.failures),
            window_s=run.seconds("windowSeconds", defaults.run_breaker.window_s),
            probe_s=run.seconds("probeSeconds", defaults.run_breaker.probe_s),
            probe_cap_s=run.seconds("probeCapSeconds", defaults.run_breaker.probe_cap_s),
            max_openings=run.integer("maxOpenings", defaults.run_breaker.max_openings, minimum=0),
        ),
        crash_loop=CrashLoopPolicy(
            failures=loop.integer("failures", defaults.crash_loop.failures),
            window_s=loop.seconds("windowSeconds", defaults.crash_loop.window_s),
        ),
    )
    for part in (backoff, node, run, loop, section):
        part.close()
    return policy


def worker_settings(
    run: InferenceRun,
    *,
    generation: int,
    run_uid: str,
    worker_index: int,
    num_workers: int,
    checkpoint_every_s: float | None = None,
    memory_bytes: int | None = None,
    grace_seconds: float = 30.0,
    device: str = "auto",
) -> WorkerSettings:
    """What a worker of this run must know. Pure.

    Args:
        run: the run.
        generation: in the store.
        run_uid: of run.json.
        worker_index: its place among the workers.
        num_workers: all places.
        checkpoint_every_s: interval adapted to the evictions that are seen; None = the spec's.
        memory_bytes: its memory limit; None = it has none.
        grace_seconds: from SIGTERM to SIGKILL.
        device: `auto` takes a GPU where there is one, and so computes on the CPU where a device plugin hands out none.
    """
    spec = run.spec
    checkpoint = spec.checkpoint
    if checkpoint_every_s is not None:
        checkpoint = replace(checkpoint, every_seconds=checkpoint_every_s)
    return WorkerSettings(
        run=run.name,
        run_uid=run_uid,
        output_uri=spec.output.uri,
        generation=generation,
        input_format=spec.input.format,
        model=_model_settings(spec),
        checkpoint=checkpoint,
        id_field=spec.input.id_field,
        value_field=spec.input.value_field,
        worker_index=worker_index,
        num_workers=num_workers,
        grace_seconds=grace_seconds,
        no_progress_seconds=spec.workers.no_progress_timeout_s,
        max_record_strikes=spec.failure_policy.max_record_strikes,
        # Who has the most that is allowed takes any shard: maxMemory may have been lowered since one asked for more.
        memory_bytes=memory_bytes if (memory_bytes or 0) < (most_memory(spec) or 0) else None,
        device=device,
    )


def _model_settings(spec: RunSpec) -> ModelSettings:
    return ModelSettings(
        name=spec.model.name.value,
        source=spec.model.source,
        parameters=dict(spec.model.parameters),
        precision=spec.model.precision.value,
        dtype=spec.output.dtype.value,
        kind=spec.output.kind,
        max_tokens_per_batch=spec.model.max_tokens_per_batch,
        max_length=spec.model.max_length,
        on_too_long=spec.model.on_too_long,
    )


def memory_limit(template: Mapping[str, Any]) -> int | None:
    """Bytes to which a template limits its worker; None when it sets no limit. Pure."""
    spec = template.get("spec")
    containers = spec.get("containers") if isinstance(spec, Mapping) else None
    for container in containers if isinstance(containers, list) else ():
        if isinstance(container, Mapping) and container.get("name") == CONTAINER_WORKER:
            resources = container.get("resources")
            limits = resources.get("limits") if isinstance(resources, Mapping) else None
            return parse_quantity(str(limits.get("memory"))) if isinstance(limits, Mapping) else None
    return None


def most_memory(spec: RunSpec) -> int | None:
    """Bytes to which a worker of the run may be limited at most; None when the template sets no limit. Pure."""
    limit = memory_limit(spec.workers.template)
    return None if limit is None else max(limit, spec.failure_policy.max_memory_bytes or 0)


def model_identity(spec: RunSpec) -> ModelIdentity:
    """What decides the numbers of a row, for run.json. Pure."""
    return ModelIdentity(
        name=spec.model.name.value,
        source=spec.model.source,
        parameters_json=canonical(spec.model.parameters).decode(),
        precision=spec.model.precision.value,
        dtype=spec.output.dtype.value,
        kind=spec.output.kind.value,
        max_length=spec.model.max_length,
        on_too_long=spec.model.on_too_long.value,
    )
