"""controller.api and controller.fields: what a user may write, and what is said when it is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from contract import settings
from contract.errors import SpecError
from contract.plan import InputFormat
from contract.settings import RowKind, TooLong
from controller.api import (
    PROFILES,
    Capacity,
    FailurePolicy,
    Profile,
    Provider,
    Resume,
    model_identity,
    parse_run,
    worker_settings,
)
from controller.fields import parse_quantity
from tests import make

OWN_MODEL = {"name": "torch", "source": "models:build"}
FULL = {
    "input": {
        "uris": ["s3://bucket/in/*.fasta.gz", "file:///d/x.fa"],
        "format": "jsonl",
        "shardBytes": "1Gi",
        "idField": "name",
        "valueField": None,
    },
    "output": {"uri": "s3://bucket/out", "dtype": "float16", "kind": "perToken"},
    "model": {
        "name": "esm2",
        "source": "random:1",
        "parameters": {"size": "8M", "compile": True},
        "precision": "bf16",
        "maxTokensPerBatch": 8192,
        "maxLength": 1022,
        "onTooLong": "quarantine",
    },
    "workers": {
        "count": 8,
        "gpusPerWorker": 2,
        "gpuResource": "amd.com/gpu",
        "capacity": {
            "provider": "gke",
            "prefer": "spot",
            "onDemandAfterPendingSeconds": 900,
            "onDemandAboveEvictionsPerHour": 4,
            "returnToSpotAfterSeconds": 1800,
            "onDemandForLastShards": 3,
        },
        "template": {"spec": {"nodeSelector": {"a": "b"}}},
        "attemptTimeoutSeconds": 3600,
        "noProgressTimeoutSeconds": 120,
    },
    "checkpoint": {"profile": "viral", "everyBytes": "8Mi"},
    "failurePolicy": {
        "maxShardRetries": 0,
        "maxRecordStrikes": 1,
        "maxUnexplainedKills": 7,
        "maxQuarantinedRecords": None,
        "maxFailedShards": 2,
        "minTokensPerBatch": 64,
        "maxMemory": "64Gi",
        "backoff": {"replaceSeconds": 0, "retrySeconds": 0.5},
        "nodeBreaker": {"score": 4},
        "runBreaker": {"probeSeconds": 0.5, "maxOpenings": 1},
        "crashLoop": {"failures": 2},
    },
    "resume": "Restart",
    "suspend": True,
    "activeDeadlineSeconds": 7200,
    "ttlSecondsAfterFinished": 0,
}


def _messages(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_run(make.resource(changes))
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_every_field_is_read() -> None:
    """What is written in each field arrives in the spec."""
    spec = parse_run(make.resource(FULL)).spec

    assert spec.input.uris == ("s3://bucket/in/*.fasta.gz", "file:///d/x.fa")
    assert (spec.input.format, spec.input.shard_bytes) == (InputFormat.JSONL, 2**30)
    assert (spec.input.id_field, spec.input.value_field) == ("name", None)
    assert (spec.output.uri, spec.output.dtype, spec.output.kind) == ("s3://bucket/out", "float16", RowKind.PER_TOKEN)
    assert (spec.model.name, spec.model.source, spec.model.precision) == ("esm2", "random:1", "bf16")
    assert spec.model.parameters == {"size": "8M", "compile": True}
    assert (spec.model.max_tokens_per_batch, spec.model.max_length) == (8192, 1022)
    assert spec.model.on_too_long is TooLong.QUARANTINE
    assert (spec.workers.count, spec.workers.gpus_per_worker, spec.workers.gpu_resource) == (8, 2, "amd.com/gpu")
    assert (spec.workers.capacity.provider, spec.workers.capacity.prefer) == (Provider.GKE, Capacity.SPOT)
    capacity = spec.workers.capacity
    assert (capacity.on_demand_after_pending_s, capacity.on_demand_above_evictions_per_hour) == (900, 4)
    assert (capacity.return_to_spot_after_s, capacity.on_demand_for_last_shards) == (1800, 3)
    assert spec.workers.template == {"spec": {"nodeSelector": {"a": "b"}}}
    assert (spec.workers.attempt_timeout_s, spec.workers.no_progress_timeout_s) == (3600, 120)
    assert (spec.profile, spec.checkpoint.every_records, spec.checkpoint.every_bytes) == (
        Profile.VIRAL,
        5000,
        8 * 2**20,
    )
    policy = spec.failure_policy
    assert (policy.max_shard_retries, policy.max_record_strikes, policy.max_unexplained_kills) == (0, 1, 7)
    assert (policy.max_quarantined_records, policy.max_failed_shards, policy.min_tokens_per_batch) == (None, 2, 64)
    assert policy.max_memory_bytes == 64 * 2**30
    assert (policy.backoff.replace_s, policy.backoff.retry_s, policy.backoff.retry_cap_s) == (0, 0.5, 60)
    assert (policy.node_breaker.score, policy.node_breaker.avoid_s) == (4, 3600)
    assert (policy.run_breaker.probe_s, policy.run_breaker.max_openings, policy.run_breaker.failures) == (0.5, 1, 5)
    assert (policy.crash_loop.failures, policy.crash_loop.window_s) == (2, 600)
    assert (spec.resume, spec.is_suspended) == (Resume.RESTART, True)
    assert (spec.active_deadline_s, spec.ttl_after_finished_s) == (7200, 0)


def test_defaults() -> None:
    """A minimal resource gets the documented defaults."""
    spec = parse_run(make.resource()).spec

    assert (spec.input.format, spec.input.shard_bytes) == (InputFormat.FASTA, 64 * 2**20)
    assert (spec.input.id_field, spec.input.value_field) == ("id", "sequence")
    assert (spec.output.dtype, spec.output.kind) == ("float32", RowKind.POOLED)
    assert (spec.model.max_length, spec.model.on_too_long) == (None, TooLong.TRUNCATE)
    assert spec.workers.attempt_timeout_s is None
    assert spec.failure_policy == FailurePolicy()
    assert (spec.resume, spec.is_suspended, spec.active_deadline_s) == (Resume.AUTO, False, None)


@pytest.mark.parametrize(
    ("checkpoint", "prefer", "viral", "profile"),
    [
        ({}, "onDemand", "", Profile.DEFAULT),
        ({}, "spot", "", Profile.SPOT),
        ({"everyRecords": 7}, "spot", "", Profile.SPOT),
        ({}, "onDemand", "true", Profile.VIRAL),
        ({}, "spot", "TRUE", Profile.VIRAL),
        ({}, "spot", "false", Profile.SPOT),
        ({"profile": "default"}, "spot", "true", Profile.DEFAULT),
        ({"profile": "spot"}, "onDemand", "true", Profile.SPOT),
    ],
)
def test_choice_of_profile(checkpoint: dict[str, Any], prefer: str, viral: str, profile: Profile) -> None:
    """A named profile wins over the environment, and that over the one for the capacity."""
    changes = {"checkpoint": checkpoint, "workers": {"capacity": {"prefer": prefer}}}

    spec = parse_run(make.resource(changes), viral_mode=viral).spec

    assert spec.profile is profile
    assert spec.checkpoint.every_seconds == PROFILES[profile].every_seconds
    assert spec.checkpoint.every_records == checkpoint.get("everyRecords", PROFILES[profile].every_records)


@pytest.mark.parametrize(
    ("checkpoint", "is_adapted"),
    [({}, True), ({"everyBytes": 1}, True), ({"everySeconds": 30}, False), ({"profile": "default"}, False)],
)
def test_an_interval_that_was_written_is_kept(checkpoint: dict[str, Any], *, is_adapted: bool) -> None:
    """Only the spot profile's own is adapted to evictions; a worker gets the adapted one."""
    changes = {"checkpoint": checkpoint, "workers": {"capacity": {"prefer": "spot"}}}
    run = parse_run(make.resource(changes))
    places = {"generation": 1, "run_uid": "u", "worker_index": 0, "num_workers": 1}

    assert run.spec.is_interval_adapted == is_adapted
    assert worker_settings(run, **places).checkpoint == run.spec.checkpoint
    assert worker_settings(run, **places, checkpoint_every_s=12).checkpoint.every_seconds == 12


@pytest.mark.parametrize(
    ("profile", "numbers"),
    [("default", (10_000, 300, 600)), ("viral", (5_000, 180, 600)), ("spot", (1_000_000, 30, 120))],
)
def test_numbers_of_the_profiles(profile: str, numbers: tuple[int, float, float]) -> None:
    """The profiles keep the numbers of the system this descends from; spot is made for evictions."""
    found = parse_run(make.resource({"checkpoint": {"profile": profile}})).spec.checkpoint

    assert (found.every_records, found.every_seconds, found.emergency_seconds) == numbers
    assert found.every_bytes == (64 if profile == "spot" else 256) * 2**20


def test_explicit_thresholds_override_the_profile_even_in_viral_mode() -> None:
    """The environment's viral mode changes defaults, never what is written."""
    run = parse_run(make.resource({"checkpoint": {"everyRecords": 42, "everySeconds": 20}}), viral_mode="true")

    assert (run.spec.checkpoint.every_records, run.spec.checkpoint.every_seconds) == (42, 20)


@pytest.mark.parametrize(
    ("changes", "path", "expected"),
    [
        ({"workers": {"count": "8"}}, "spec.workers.count", "whole number"),
        ({"workers": {"count": -1}}, "spec.workers.count", "at least 0"),
        ({"workers": {"count": 10_001}}, "spec.workers.count", "at most 10000"),
        ({"workers": {"count": True}}, "spec.workers.count", "whole number"),
        ({"input": {"uris": []}}, "spec.input.uris", "at least one"),
        ({"input": {"uris": "a.fasta"}}, "spec.input.uris", "list"),
        ({"input": {"uris": ["a"] * 1001}}, "spec.input.uris", "at most 1000 items"),
        ({"input": {"uris": ["a" * 2049]}}, "spec.input.uris", "at most 2048 characters"),
        ({"output": {"uri": "a" * 2049}}, "spec.output.uri", "at most 2048 characters"),
        (
            {"workers": {"template": {"spec": {"restartPolicy": "Always"}}}},
            "spec.workers.template.spec.restartPolicy",
            "must not restart",
        ),
        ({"input": {"uris": ["abfs://b/x"]}}, "spec.input.uris[0]", "s3://"),
        ({"output": {"uri": "https://b/x"}}, "spec.output.uri", "s3://"),
        ({"output": {"uri": ""}}, "spec.output.uri", "required"),
        ({"output": {"uri": None}}, "spec.output.uri", "required"),
        ({"output": {"dtype": 16}}, "spec.output.dtype", "float16"),
        ({"input": {"shardBytes": "64MB"}}, "spec.input.shardBytes", '"64Mi"'),
        ({"input": {"shardBytes": 0}}, "spec.input.shardBytes", "at least 1"),
        ({"input": {"shardBytes": True}}, "spec.input.shardBytes", "quantity"),
        ({"input": {"idField": 3}}, "spec.input.idField", "text"),
        ({"model": {"name": "esm"}}, "spec.model.name", "did you mean esm2?"),
        ({"model": {"name": None}}, "spec.model.name", "kmer, esm2, torch"),
        ({"model": {"name": "torch"}}, "spec.model.source", "module:callable"),
        ({"model": {"name": "esm2"}}, "spec.model.source", "random:SEED"),
        ({"model": {"maxLength": 0}}, "spec.model.maxLength", "at least 1"),
        ({"model": {"parameters": [1]}}, "spec.model.parameters", "mapping"),
        ({"model": {"parameters": {"x": {1, 2}}}}, "spec.model.parameters", "JSON"),
        ({"suspend": "no"}, "spec.suspend", "true or false"),
        ({"resume": "auto"}, "spec.resume", "did you mean Auto?"),
        ({"activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds", "positive"),
        ({"activeDeadlineSeconds": float("inf")}, "spec.activeDeadlineSeconds", "positive"),
        ({"ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished", "at least 0"),
        ({"checkpoint": {"everySeconds": 0}}, "spec.checkpoint.everySeconds", "positive"),
        ({"checkpoint": {"everyRecords": 0}}, "spec.checkpoint.everyRecords", "at least 1"),
        ({"checkpoint": {"everySeconds": 600}}, "spec.checkpoint.emergencySeconds", "must exceed everySeconds"),
        ({"checkpoint": {"emergencySeconds": 300}}, "spec.checkpoint.emergencySeconds", "must exceed everySeconds"),
        ({"checkpoint": {"profile": "virus"}}, "spec.checkpoint.profile", "viral"),
        ({"checkpoint": "spot"}, "spec.checkpoint", "mapping"),
        ({"failurePolicy": {"runBreaker": {"failures": 0}}}, "spec.failurePolicy.runBreaker.failures", "at least 1"),
        ({"workers": {"cuont": 3}}, "spec.workers.cuont", "unknown field"),
        ({"workerz": {}}, "spec.workerz", "did you mean workers?|known here"),
        (
            {"failurePolicy": {"maxFailedShard": 1}},
            "spec.failurePolicy.maxFailedShard",
            "did you mean maxFailedShards?",
        ),
    ],
)
def test_a_mistake_names_path_value_and_remedy(changes: dict[str, Any], path: str, expected: str) -> None:
    """Each mistake is one line that begins with its path and says what to write instead."""
    (line,) = _messages(changes)

    assert line.startswith(f"{path}: ")
    assert any(text in line for text in expected.split("|"))


def test_all_mistakes_come_at_once() -> None:
    """A resource with four mistakes gets four lines, not the first of them."""
    lines = _messages(
        {
            "workers": {"count": "8"},
            "input": {"format": "fastq"},
            "model": {"nam": 1},
            "checkpoint": {"everyBytes": "x"},
        }
    )

    assert len(lines) == 4


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ({"apiVersion": "v1"}, "apiVersion"),
        ({"kind": "Job"}, "kind"),
        ({"metadata": {}}, "metadata.name"),
        ({"metadata": {"name": "Upper"}}, "lower-case"),
        ({"metadata": {"name": "x", "generation": 0}}, "metadata.generation"),
        ({"spce": {}}, "did you mean spec?|known here"),
        ({"spec": None}, "spec.input.uris"),
    ],
)
def test_the_frame_is_checked_too(top: dict[str, Any], expected: str) -> None:
    """API version, kind and name are checked; unknown metadata is the API server's business."""
    with pytest.raises(SpecError) as caught:
        parse_run({**make.resource(), **top})

    assert any(text in str(caught.value) for text in expected.split("|"))


@pytest.mark.parametrize("found", [None, [], "spec"])
def test_what_is_no_mapping_is_refused(found: Any) -> None:
    """A file that holds no mapping gets told how to begin."""
    with pytest.raises(SpecError, match="apiVersion"):
        parse_run(found)


def test_a_wrong_viral_mode_is_named() -> None:
    """A value of the environment variable that is neither true nor false is not guessed at."""
    with pytest.raises(SpecError, match="VIRNUCPRO_VIRAL_CHECKPOINT_MODE"):
        parse_run(make.resource(), viral_mode="yes")


def test_metadata_and_status_are_left_alone() -> None:
    """Labels, annotations, and the status an API server sends along are no mistakes."""
    found = make.resource()
    found["metadata"].update(labels={"a": "b"}, uid="u", generation=3)
    found["status"] = {"phase": "Running"}

    assert parse_run(found).resource_generation == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64Mi", 64 * 2**20),
        ("1.5Gi", 3 * 2**29),
        ("0.5k", 500),
        ("1024", 1024),
        ("1P", 10**15),
        ("2Pi", 2**51),
        ("0.3", None),
        ("64MB", None),
        ("-1", None),
        ("", None),
        ("Mi", None),
    ],
)
def test_quantities(text: str, expected: int | None) -> None:
    """Kubernetes quantities are exact; what is no whole number of bytes is none."""
    assert parse_quantity(text) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "kmer", "parameters": {"k": 2}}}, "spec.model.parameters: kmer has no parameter k"),
        ({"output": {"kind": "perToken"}}, "spec.output.kind: kmer gives one row per record"),
        (
            {"model": {"name": "esm2", "source": "random:1", "parameters": {"size": "9M"}}},
            "spec.model.parameters.size: '9M' is unknown; choose one of 8M",
        ),
        (
            {"model": {"name": "esm2", "source": "/w", "parameters": {"compile": "yes"}}},
            "spec.model.parameters.compile: 'yes' is neither true nor false",
        ),
        ({"model": {"name": "torch", "source": "models"}}, "spec.model.source: 'models' is not module:callable"),
    ],
    ids=["unknown", "kind", "out of bounds", "wrong type", "source"],
)
def test_what_every_worker_would_refuse_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    """Parameters that the model does not take, with the path of the field; beside the spec's other mistakes."""
    with pytest.raises(SpecError) as refused:
        make.run({**changes, "workers": {"count": -1}})

    assert message in str(refused.value)
    assert str(refused.value).startswith("2 mistake(s)")


def test_parameters_of_a_model_of_ones_own_are_its_own_business() -> None:
    """Nobody but its callable knows them."""
    assert make.run({"model": {**OWN_MODEL, "parameters": {"k": 2}}}).spec.model.parameters == {"k": 2}


def test_worker_settings_survive_the_environment_variable() -> None:
    """What the spec says arrives in a worker unchanged."""
    run = parse_run(make.resource(FULL))

    found = settings.from_json(
        settings.to_json(
            worker_settings(
                run, generation=3, run_uid="u", worker_index=5, num_workers=8, grace_seconds=12, device="cpu"
            )
        )
    )

    assert (found.run, found.run_uid, found.generation, found.output_uri) == ("run", "u", 3, "s3://bucket/out")
    assert (found.worker_index, found.num_workers, found.grace_seconds, found.device) == (5, 8, 12, "cpu")
    assert (found.id_field, found.value_field, found.input_format) == ("name", None, InputFormat.JSONL)
    assert (found.no_progress_seconds, found.max_record_strikes) == (120, 1)
    assert found.checkpoint == run.spec.checkpoint
    assert (found.model.name, found.model.dtype, found.model.kind) == ("esm2", "float16", RowKind.PER_TOKEN)
    assert found.model.parameters == {"size": "8M", "compile": True}


@pytest.mark.parametrize(
    ("given", "allowed", "expected"),
    [(None, "16Gi", None), (4, "16Gi", 4), (16, "16Gi", None), (16, "8Gi", None), (4, None, None)],
    ids=["no limit", "less than another", "the most", "more than is allowed now", "nobody has more"],
)
def test_who_has_the_most_memory_takes_any_shard(given: int | None, allowed: str | None, expected: int | None) -> None:
    """A worker with less leaves what needs more to others; nobody else would come for what no worker may have."""
    container = {"name": "worker", "resources": {"limits": {"memory": "4Gi"}}}
    policy = {} if allowed is None else {"maxMemory": allowed}
    run = make.run({"workers": {"template": {"spec": {"containers": [container]}}}, "failurePolicy": policy})

    found = worker_settings(
        run, generation=1, run_uid="u", worker_index=0, num_workers=1, memory_bytes=given and given * 2**30
    )

    assert found.memory_bytes == (expected and expected * 2**30)


def test_model_identity_does_not_depend_on_the_order_of_parameters() -> None:
    """Two spellings of the same parameters are one model."""
    one = make.run({"model": {**OWN_MODEL, "parameters": {"a": 1, "b": 2}}})
    other = make.run({"model": {**OWN_MODEL, "parameters": {"b": 2, "a": 1}}})

    assert model_identity(one.spec) == model_identity(other.spec)
    assert model_identity(one.spec) != model_identity(make.run({"output": {"dtype": "float16"}}).spec)
