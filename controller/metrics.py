"""What the controller counts, and the text that Prometheus reads. docs/metrics.md is the reference, kept equal by a test.

What is known of runs is read from their status when Prometheus asks (`controller.metrics_of_runs`); counted here is what
the process itself does. A registry for each process, no global one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from contract.store.errors import StoreError
from contract.store.measured import StoreCall, StoreObserver, StoreResult
from controller.cluster import ApiUnavailable, Object, ObjectChanged, ObjectMissing
from controller.metrics_of_runs import RunsCollector
from controller.replacements import Stage

RECONCILE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
REPLACEMENT_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class ReconcileResult(StrEnum):
    """How a reconcile ended."""

    OK = "ok"
    CONFLICT = "conflict"
    """The run was another version by now, or gone: looked at again."""
    UNAVAILABLE = "unavailable"
    """The API server or a store did not answer: put off."""
    ERROR = "error"
    """The controller's own mistake, or a refusal it does not know: put off."""


class ControllerMetrics:
    """The metrics of one controller process. Threads may share it."""

    def __init__(self) -> None:
        """Counts at once; what is only to be shown is told by `show`."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._reconcile_seconds = self._histogram(
            "reconcile_seconds", "Time of a reconcile of one run, by how it ended.", RECONCILE_SECONDS, "result"
        )
        self._replacement_seconds = self._histogram(
            "replacement_seconds",
            "From seeing the end of a worker to seeing its replacement created or running, backoff included.",
            REPLACEMENT_SECONDS,
            "stage",
        )
        self._api_requests = self._counter(
            "api_requests", "Requests to the API server, by HTTP status.", "method", "code"
        )
        self._api_seconds = self._histogram(
            "api_request_seconds",
            "Time of a request to the API server; of a watch, to its answer.",
            REQUEST_SECONDS,
            "method",
        )
        self._store_calls = self._counter("store_calls", "Calls of object stores.", "store", "call", "result")
        self._store_seconds = self._histogram(
            "store_call_seconds", "Time of a store call.", REQUEST_SECONDS, "store", "call"
        )
        for result in ReconcileResult:
            self._reconcile_seconds.labels(result.value)
        for stage in Stage:
            self._replacement_seconds.labels(stage.value)

    def show(
        self,
        *,
        runs: Callable[[], Iterable[Object]],
        is_leading: Callable[[], bool],
        ages_s: Callable[[], Mapping[str, float]],
        now: Callable[[], datetime],
    ) -> None:
        """Show what is not counted, but asked for whenever Prometheus asks.

        Args:
            runs: the resources that this controller works on; none while another one leads.
            is_leading: whether it does.
            ages_s: how long each watch has been silent.
            now: the time, for breakers that are open until some instant.
        """
        self.registry.register(_StateCollector(is_leading, ages_s))
        self.registry.register(RunsCollector(runs, now=now))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    @contextmanager
    def reconciling(self) -> Iterator[None]:
        """Around one reconcile."""
        started_s, result = time.monotonic(), ReconcileResult.OK
        try:
            yield
        except (ObjectMissing, ObjectChanged):
            result = ReconcileResult.CONFLICT
            raise
        except (ApiUnavailable, StoreError):
            result = ReconcileResult.UNAVAILABLE
            raise
        except Exception:
            result = ReconcileResult.ERROR
            raise
        finally:
            self._reconcile_seconds.labels(result.value).observe(time.monotonic() - started_s)

    def replaced(self, stage: Stage, seconds: float) -> None:
        """A worker's replacement has come so far."""
        self._replacement_seconds.labels(stage.value).observe(seconds)

    def requested(self, method: str, code: str, seconds: float) -> None:
        """A request to the API server has ended; `code` is HTTP's status, or `none` when there was no answer."""
        self._api_requests.labels(method, code).inc()
        self._api_seconds.labels(method).observe(seconds)

    def store_observer(self, store: str) -> StoreObserver:
        """For a MeasuredStore; `store` says what it is to a run: `input` or `output`."""

        def observe(call: StoreCall, result: StoreResult, seconds: float, _error: Exception | None) -> None:
            self._store_calls.labels(store, call.value, result.value).inc()
            self._store_seconds.labels(store, call.value).observe(seconds)

        return observe

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"inferencerun_controller_{name}_total", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"inferencerun_controller_{name}", meaning, labels, registry=self.registry, buckets=buckets)


class _StateCollector(Collector):
    """What is asked of the process, not counted."""

    def __init__(self, is_leading: Callable[[], bool], ages_s: Callable[[], Mapping[str, float]]) -> None:
        self._is_leading = is_leading
        self._ages_s = ages_s

    def describe(self) -> Iterator[Metric]:
        """The families, without values."""
        yield from self._families()

    def collect(self) -> Iterator[Metric]:
        """The families with their values."""
        leader, ages = self._families()
        leader.add_metric((), float(self._is_leading()))
        for watch, age_s in self._ages_s().items():
            ages.add_metric((watch,), age_s)
        yield leader
        yield ages

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily(
                "inferencerun_controller_leader", "1 when this controller leads, 0 when it waits to.", labels=()
            ),
            GaugeMetricFamily(
                "inferencerun_controller_watch_age_seconds",
                "Time for which a watch has been silent, or behind; none while another controller leads.",
                labels=("watch",),
            ),
        )
