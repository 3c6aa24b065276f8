"""What a worker counts equals what it did; serving it never costs the work."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import names
from contract.errors import ModelProcessDied, SpecError
from contract.names import ExitCode, FailureClass
from contract.store.measured import MeasuredStore
from contract.store.memory import MemoryStore
from tests.servers import free_port
from tests.worker.build import SmallRun, checkpoints, model, proteins, settings
from worker.metrics import WorkerMetrics, serve
from worker.run import Worker

MakeRun = Callable[..., SmallRun]
SEQUENCES = proteins(40)


def value(worker: Worker, name: str, **labels: str) -> float | None:
    """One sample of a worker's metrics; None when there is none."""
    return worker.metrics.registry.get_sample_value(f"inferencerun_worker_{name}", {"run": "run", **labels})


def with_store_measured(run: SmallRun, **changes: Any) -> Worker:
    """A worker whose output store is measured, as an entry point does it."""
    worker = run.worker(**changes)
    worker.committer.store = MeasuredStore(worker.committer.store, worker.metrics.store_observer("output"))
    return worker


def test_counts_equal_what_was_committed(small_run: MakeRun) -> None:
    """Records, verdicts, checkpoints, bytes and tokens are those of manifests and files."""
    sequences = [*SEQUENCES[:20], f"X{SEQUENCES[20]}", *SEQUENCES[21:]]
    poisonous = model(harm="segfault", on="X")
    run = small_run(sequences, settings=settings(model=poisonous, checkpoint=checkpoints(every_records=7)))
    worker = with_store_measured(run)

    assert worker.run() is ExitCode.NO_WORK_LEFT

    found = run.manifest()
    assert value(worker, "records_total") == 39
    assert value(worker, "quarantined_records_total", **{"class": "PoisonInput"}) == 1
    assert value(worker, "quarantined_records_total", **{"class": "TooLong"}) == 0
    assert value(worker, "checkpoint_seconds_count") == len(found.checkpoints)
    assert value(worker, "checkpoint_bytes_sum") == sum(item.bytes for item in found.checkpoints)
    assert [value(worker, "checkpoints_total", reason=reason) for reason in ("sequence_threshold", "shutdown")] == [
        run.reasons().count("sequence_threshold"),
        run.reasons().count("shutdown"),
    ]
    assert value(worker, "input_bytes_total") == found.bytes_done
    assert value(worker, "tokens_total") == sum(len(text) for text in sequences) - len(sequences[20])
    assert (value(worker, "claims_total"), value(worker, "shards_total", end="complete")) == (1, 1)


def test_the_model_process_is_counted_as_it_goes(small_run: MakeRun) -> None:
    """Outcomes of batches, restarts, and the time it was busy."""
    poisonous = model(harm="segfault", on="X")
    run = small_run([*SEQUENCES, "XAC"], settings=settings(model=poisonous))
    worker = run.worker()

    worker.run()

    assert value(worker, "batches_total", outcome="rows") == worker.model.outcomes_of("Rows")
    assert value(worker, "batches_total", outcome="died") == worker.model.outcomes_of("Died") > 0
    assert value(worker, "model_restarts_total") == worker.model.num_restarts > 0
    assert value(worker, "model_seconds_total", state="busy") == worker.model.busy_s > 0
    assert value(worker, "checkpoint_stall_seconds_total") > 0


def test_store_calls_are_counted_by_what_became_of_them(small_run: MakeRun) -> None:
    """A shard that somebody else has claimed in the meantime is a conflict of a creation."""
    run = small_run(SEQUENCES, num_shards=2)
    rival, late = run.worker(), with_store_measured(run)
    listing = late.committer.store.store.list

    def list_before_the_rival(prefix: str = "", **options: Any) -> Iterator[Any]:
        seen = list(listing(prefix, **options))
        late.committer.store.store.list = listing
        rival.run()
        yield from seen

    late.committer.store.store.list = list_before_the_rival

    assert late.run() is ExitCode.NO_WORK_LEFT

    calls = {"store": "output", "call": "put_create"}
    assert value(late, "store_calls_total", **calls, result="conflict") == 1
    assert value(late, "store_call_seconds_count", **calls) == 1
    assert value(late, "claims_total") == 0


def test_a_shard_that_is_given_back_is_not_one_that_is_left(small_run: MakeRun) -> None:
    """A drain releases; an error leaves the shard to whoever finds the worker ended."""
    drained = small_run(SEQUENCES, name="drained").worker()
    drained.model.on_receive = lambda _: drained.drain.set()
    failing = small_run(["XAC"] * 9, name="failing", settings=settings(model=model(harm="exit", on="X"))).worker()

    assert drained.run() is ExitCode.DRAINED
    with pytest.raises(ModelProcessDied):
        failing.run()

    assert [value(drained, "shards_total", end=end) for end in ("released", "left")] == [1, 0]
    assert [value(failing, "shards_total", end=end) for end in ("released", "left")] == [0, 1]
    assert drained.drain_class() is FailureClass.SPOT_EVICTION


def test_metrics_are_served_where_the_environment_says(tmp_path: Path) -> None:
    """In the text format, with the run's name on each of our series, and the process's own beside them."""
    metrics, port = WorkerMetrics(run="swissprot"), free_port()
    metrics.claimed()
    store = MeasuredStore(MemoryStore(), metrics.store_observer("input"))
    store.put_create("k", b"")

    server = serve(metrics, {names.ENV_METRICS_PORT: str(port), names.ENV_METRICS_HOST: "127.0.0.1"})
    assert server is not None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
    finally:
        server.shutdown()
        server.server_close()

    assert 'inferencerun_worker_claims_total{run="swissprot"} 1.0' in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    ours = [line for line in lines if line.startswith("inferencerun_")]
    assert len(ours) > 20
    assert all('run="swissprot"' in line for line in ours)


@pytest.mark.parametrize("environment", [{}, {names.ENV_METRICS_PORT: ""}, {names.ENV_METRICS_PORT: "0"}])
def test_without_a_port_nothing_is_served(environment: dict[str, str]) -> None:
    """As in `inferencerun run`."""
    assert serve(WorkerMetrics(run="run"), environment) is None


def test_a_port_that_is_taken_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The second worker on a host goes on without."""
    with socket.create_server(("127.0.0.1", 0)) as taken, caplog.at_level(logging.WARNING):
        port = str(taken.getsockname()[1])

        found = serve(WorkerMetrics(run="run"), {names.ENV_METRICS_PORT: port, names.ENV_METRICS_HOST: "127.0.0.1"})

    assert found is None
    assert [record.message for record in caplog.records] == ["metrics not served"]


@pytest.mark.parametrize("text", ["metrics", "-1", "70000", "80.5"])
def test_what_is_no_port_is_a_mistake_of_the_spec(text: str) -> None:
    """It names the variable and what to write."""
    with pytest.raises(SpecError, match=r"INFERENCERUN_METRICS_PORT: .* is no port; write a number"):
        serve(WorkerMetrics(run="run"), {names.ENV_METRICS_PORT: text})
