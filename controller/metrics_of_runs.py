"""Metrics of runs, read from the status that the controller last wrote. A run that is gone takes its series along.

Nothing is counted here: the numbers come from the manifests by way of the status, so they survive the controller, and
any controller that leads shows the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from contract.names import FailureClass, Phase
from controller import ledger
from controller.breaker import NodeBreakers, RunBreaker, nodes_to_avoid, run_state
from controller.cluster import Object

OVER = frozenset({Phase.SUCCEEDED, Phase.FAILED})

Values = Iterable[tuple[tuple[str, ...], float]]
"""(values of the further labels, value)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is shown of one version of a run."""

    namespace: str
    run: str
    phase: str
    """One of `Phase`, or what a newer version of the controller calls it."""
    status: Mapping[str, Any]
    breaker: RunBreaker = field(default_factory=RunBreaker)
    nodes: NodeBreakers = ()

    def number(self, name: str, section: str = "") -> float:
        """A number of the status, or of a section of it; 0 where it says nothing."""
        fields = (self.status.get(section) or {}) if section else self.status
        return float(fields.get(name) or 0)


def read_run(resource: Object) -> RunFacts:
    """The facts of a run as the API gives it."""
    metadata, status = resource["metadata"], resource.get("status") or {}
    memory = ledger.from_status(status).memory
    return RunFacts(
        namespace=metadata["namespace"],
        run=metadata["name"],
        phase=status.get("phase") or Phase.PENDING.value,
        status=status,
        breaker=memory.breaker,
        nodes=memory.nodes,
    )


@dataclass(frozen=True, slots=True)
class _Series:
    """One metric, with a value or more for each run."""

    name: str
    meaning: str
    values: Callable[[RunFacts, datetime], Values]
    labels: tuple[str, ...] = ()
    is_counter: bool = False

    def family(self, runs: Iterable[RunFacts], now: datetime) -> Metric:
        kind = CounterMetricFamily if self.is_counter else GaugeMetricFamily
        family = kind(f"inferencerun_run_{self.name}", self.meaning, labels=("namespace", "run", *self.labels))
        for run in runs:
            for labels, value in self.values(run, now):
                family.add_metric((run.namespace, run.run, *labels), value)
        return family


def _shards(run: RunFacts, _now: datetime) -> Values:
    known = {state: run.number(state, "shards") for state in ("complete", "running", "failed")}
    pending = max(0.0, run.number("total", "shards") - sum(known.values()))
    return [((state,), value) for state, value in (*known.items(), ("pending", pending))]


def _restarts(run: RunFacts, _now: datetime) -> Values:
    """All classes, those at 0 too: an increase from nothing to 1 is none to Prometheus."""
    by_class = (run.status.get("restarts") or {}).get("byClass") or {}
    return [((kind.value,), float(by_class.get(kind.value) or 0)) for kind in FailureClass]


def _remaining(run: RunFacts, _now: datetime) -> Values:
    left_s = (run.status.get("progress") or {}).get("etaSeconds")
    return [] if left_s is None else [((), float(left_s))]


def _checkpoint_interval(run: RunFacts, _now: datetime) -> Values:
    every_s = (run.status.get("checkpoint") or {}).get("everySeconds")
    return [((), float(every_s))] if every_s else []


def _breaker(run: RunFacts, now: datetime) -> Values:
    return [] if run.phase in OVER else [((run_state(run.breaker, now).value,), 1.0)]


def _avoided_nodes(run: RunFacts, now: datetime) -> Values:
    return [] if run.phase in OVER else [((), float(len(nodes_to_avoid(run.nodes, occupied=(), now=now))))]


_SERIES = (
    _Series("phase", "1 for the phase that the run is in.", lambda run, _: [((run.phase,), 1.0)], ("phase",)),
    _Series(
        "records", "Records in checkpoints or in quarantine.", lambda run, _: [((), run.number("records", "progress"))]
    ),
    _Series("quarantined_records", "Records in quarantine.", lambda run, _: [((), run.number("quarantined"))]),
    _Series(
        "done_bytes", "Stored bytes of input behind the run.", lambda run, _: [((), run.number("bytes", "progress"))]
    ),
    _Series(
        "input_bytes", "Stored bytes of input, all of it.", lambda run, _: [((), run.number("totalBytes", "progress"))]
    ),
    _Series("remaining_seconds", "Time left at the present rate; absent when unknown.", _remaining),
    _Series(
        "goodput_ratio",
        "Share of the held worker time that ended in committed checkpoints, 0 to 1.",
        lambda run, _: [((), run.number("goodput"))],
    ),
    _Series(
        "checkpoint_interval_seconds",
        "How often workers that start now write checkpoints; absent when unknown.",
        _checkpoint_interval,
    ),
    _Series("shards", "Shards, by where they stand.", _shards, ("state",)),
    _Series(
        "workers",
        "Workers, by how far they are.",
        lambda run, _: [((state,), run.number(state, "workers")) for state in ("desired", "active", "ready")],
        ("state",),
    ),
    _Series("restarts", "Ended workers, by class.", _restarts, ("class",), is_counter=True),
    _Series(
        "counted_restarts",
        "Ended workers that count against a budget.",
        lambda run, _: [((), run.number("counted", "restarts"))],
        is_counter=True,
    ),
    _Series(
        "breaker_state", "1 for the state of the circuit breaker; absent once the run is over.", _breaker, ("state",)
    ),
    _Series("avoided_nodes", "Nodes that get no new worker of the run; absent once it is over.", _avoided_nodes),
)


class RunsCollector(Collector):
    """All runs of this controller, whenever Prometheus asks."""

    def __init__(self, runs: Callable[[], Iterable[Object]], *, now: Callable[[], datetime]) -> None:
        """`runs` gives the newest version of each."""
        self._runs = runs
        self._now = now
        self._read: dict[str, tuple[str, RunFacts]] = {}
        """By uid: resourceVersion and facts. The memory in a status of thousands of workers takes a while to read."""

    def describe(self) -> Iterator[Metric]:
        """The families, without values."""
        return self._families([])

    def collect(self) -> Iterator[Metric]:
        """The families with their values."""
        read: dict[str, tuple[str, RunFacts]] = {}
        for resource in self._runs():
            uid, version = resource["metadata"]["uid"], resource["metadata"]["resourceVersion"]
            known = self._read.get(uid)
            read[uid] = known if known is not None and known[0] == version else (version, read_run(resource))
        self._read = read
        return self._families([facts for _, facts in read.values()])

    def _families(self, runs: list[RunFacts]) -> Iterator[Metric]:
        now = self._now()
        by_phase = Counter((run.namespace, run.phase) for run in runs)
        total = GaugeMetricFamily("inferencerun_runs", "Runs, by phase.", labels=("namespace", "phase"))
        for namespace in sorted({run.namespace for run in runs}):
            for phase in Phase:
                total.add_metric((namespace, phase.value), by_phase[namespace, phase])
        yield total
        for series in _SERIES:
            yield series.family(runs, now)
