"""What a worker counts, and where Prometheus reads it. docs/metrics.md is the reference, kept equal by a test.

Counting is part of the worker; serving is switched on by INFERENCERUN_METRICS_PORT. All series carry the run's name and
none carries pod, shard or record: the pod is what Prometheus scrapes, so it adds that label itself. There is a registry
for each process, no global one.
"""

from __future__ import annotations

import logging
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from functools import partial
from typing import Protocol
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from contract import names
from contract.errors import SpecError
from contract.names import CheckpointReason, QuarantineClass
from contract.store.measured import StoreCall, StoreObserver, StoreResult

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
CHECKPOINT_BYTES = tuple(float(2**power) for power in range(16, 31, 2))
"""64 KiB to 1 GiB."""
STORE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ShardEnd(StrEnum):
    """How a worker's time with a shard ended."""

    COMPLETE = "complete"
    FAILED = "failed"
    """The input object is bad: no worker can do it."""
    RELEASED = "released"
    """Given back, on a drain."""
    LEFT = "left"
    """Kept in an error, for whoever finds this worker ended."""


class ModelTimes(Protocol):
    """What is read of the model process (`worker.model_client.ModelProcess`)."""

    busy_s: float
    idle_s: float

    @property
    def num_restarts(self) -> int:
        """Starts after the first."""
        ...


class WorkerMetrics:
    """The metrics of one worker. Its threads may share it."""

    def __init__(self, *, run: str) -> None:
        """Everything that can be named ahead starts at 0: an increase from nothing to 1 is none to Prometheus."""
        self.registry = CollectorRegistry()
        self._run = run
        ProcessCollector(registry=self.registry)
        self._claims = self._counter("claims", "Shards claimed.").labels(run)
        self._shards = partial(self._counter("shards", "Shards let go of, by how that ended.", "end").labels, run)
        self._records = self._counter("records", "Records whose rows were committed.").labels(run)
        self._quarantined = partial(
            self._counter("quarantined_records", "Records committed as quarantined, by class.", "class").labels, run
        )
        self._input_bytes = self._counter("input_bytes", "Stored bytes of input that commits went past.").labels(run)
        self._tokens = self._counter("tokens", "Tokens of records whose rows came back from the model.").labels(run)
        self._batches = partial(
            self._counter("batches", "Batches that left the model process, by outcome.", "outcome").labels, run
        )
        self._checkpoints = partial(
            self._counter("checkpoints", "Checkpoints committed, by the trigger that wrote them.", "reason").labels, run
        )
        self._checkpoint_bytes = self._histogram(
            "checkpoint_bytes", "Size of a committed checkpoint.", CHECKPOINT_BYTES
        ).labels(run)
        self._checkpoint_seconds = self._histogram(
            "checkpoint_seconds", "From serialising a checkpoint to its commit.", CHECKPOINT_SECONDS
        ).labels(run)
        self._stall_seconds = self._counter(
            "checkpoint_stall_seconds", "Time in which no batch was handed to the model, for a checkpoint."
        ).labels(run)
        self._store_calls = partial(
            self._counter("store_calls", "Calls of object stores.", "store", "call", "result").labels, run
        )
        self._store_seconds = partial(
            self._histogram("store_call_seconds", "Time of a store call.", STORE_SECONDS, "store", "call").labels, run
        )
        self._model: ModelTimes | None = None
        self.registry.register(_ModelCollector(run, lambda: self._model))
        self._start_at_zero()

    def watch(self, model: ModelTimes) -> None:
        """Read the model process's times whenever Prometheus asks."""
        self._model = model

    def claimed(self) -> None:
        """A shard was claimed."""
        self._claims.inc()

    def shard_ended(self, end: ShardEnd) -> None:
        """The shard is no longer worked on here."""
        self._shards(end.value).inc()

    def batch_ended(self, outcome: str) -> None:
        """A batch came out of the model process, whatever became of it."""
        self._batches(outcome).inc()

    def rows_finished(self, num_tokens: int) -> None:
        """Sound rows came back for records of so many tokens."""
        self._tokens.inc(num_tokens)

    def committed(self, *, num_records: int, input_bytes: int, quarantined: Iterable[QuarantineClass]) -> None:
        """A commit landed, with a checkpoint or without."""
        self._records.inc(num_records)
        self._input_bytes.inc(max(0, input_bytes))
        for kind, number in Counts(quarantined).items():
            self._quarantined(kind.value).inc(number)

    def checkpoint_committed(self, *, reason: CheckpointReason, num_bytes: int, seconds: float) -> None:
        """The commit named a new checkpoint."""
        self._checkpoints(reason.value).inc()
        self._checkpoint_bytes.observe(num_bytes)
        self._checkpoint_seconds.observe(seconds)

    def stalled(self, seconds: float) -> None:
        """The main thread waited so long for a checkpoint."""
        self._stall_seconds.inc(seconds)

    def store_observer(self, store: str) -> StoreObserver:
        """For a MeasuredStore; `store` says what it is to the worker: `input` or `output`."""

        def observe(call: StoreCall, result: StoreResult, seconds: float, _error: Exception | None) -> None:
            self._store_calls(store, call.value, result.value).inc()
            self._store_seconds(store, call.value).observe(seconds)

        return observe

    def _start_at_zero(self) -> None:
        for end in ShardEnd:
            self._shards(end.value)
        for kind in QuarantineClass:
            self._quarantined(kind.value)
        for reason in CheckpointReason:
            self._checkpoints(reason.value)
        for call in (StoreCall.PUT_CREATE, StoreCall.PUT_UPDATE):
            self._store_calls("output", call.value, StoreResult.CONFLICT.value)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"inferencerun_worker_{name}_total", meaning, ("run", *labels), registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(
            f"inferencerun_worker_{name}", meaning, ("run", *labels), registry=self.registry, buckets=buckets
        )


class _ModelCollector(Collector):
    """Reads the model process's own sums when asked, so that nothing is counted twice."""

    def __init__(self, run: str, model: Callable[[], ModelTimes | None]) -> None:
        self._run = run
        self._model_now = model

    def describe(self) -> Iterator[Metric]:
        """The families, without values."""
        yield from self._families()

    def collect(self) -> Iterator[Metric]:
        """The families with their values."""
        seconds, restarts = self._families()
        model = self._model_now()
        if model is not None:
            seconds.add_metric((self._run, "busy"), model.busy_s)
            seconds.add_metric((self._run, "idle"), model.idle_s)
            restarts.add_metric((self._run,), model.num_restarts)
        yield seconds
        yield restarts

    def _families(self) -> tuple[CounterMetricFamily, CounterMetricFamily]:
        return (
            CounterMetricFamily(
                "inferencerun_worker_model_seconds",
                "Time of the model process since its first batch, by what it did.",
                labels=("run", "state"),
            ),
            CounterMetricFamily(
                "inferencerun_worker_model_restarts", "Starts of the model process after the first.", labels=("run",)
            ),
        )


def serve(metrics: WorkerMetrics, environment: Mapping[str, str]) -> WSGIServer | None:
    """Serve the metrics in a thread, on the port that the environment names; None when it names none.

    A port that is taken costs the metrics, not the work: it is logged. Raises SpecError for what is no port.
    """
    text = environment.get(names.ENV_METRICS_PORT) or "0"
    if not text.isdecimal() or int(text) > 65_535:
        raise SpecError(f"{names.ENV_METRICS_PORT}: {text!r} is no port; write a number from 1 to 65535, or 0 for none")
    if int(text) == 0:
        return None
    host = environment.get(names.ENV_METRICS_HOST) or "0.0.0.0"  # noqa: S104  (Prometheus comes to the pod's address)
    try:
        server, _ = start_http_server(int(text), host, metrics.registry)
    except OSError as error:
        logger.warning("metrics not served", extra={"host": host, "port": int(text), "detail": str(error)})
        return None
    logger.info("metrics", extra={"host": host, "port": int(text)})
    return server
