"""controller.metrics and controller.metrics_of_runs: what is shown equals the status, and what was done."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from contract.errors import SpecError
from contract.names import FailureClass, Phase
from contract.store.errors import Unavailable
from controller import ledger
from controller.breaker import NodeBreaker, RunBreaker
from controller.cluster import ApiUnavailable, Object, ObjectChanged
from controller.health import serve
from controller.ledger import Ledger
from controller.memory import RunMemory
from controller.metrics import ControllerMetrics
from controller.replacements import Stage
from tests import make
from tests.controller.bench import bench


def resource(name: str = "run", *, version: int = 1, memory: RunMemory | None = None, **status: Any) -> Object:
    """A run in namespace `ns` with this status."""
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": str(version)}
    text = ledger.to_text(Ledger(memory=memory or RunMemory()))
    return {**make.resource(name=name), "metadata": metadata, "status": {"memory": text, **status}}


def shown(*runs: Object, at_s: float = 0.0) -> ControllerMetrics:
    """The metrics of a controller that leads and works on these."""
    metrics = ControllerMetrics()
    metrics.show(runs=lambda: runs, is_leading=lambda: True, ages_s=lambda: {"pods": 3.0}, now=lambda: make.later(at_s))
    return metrics


def value(metrics: ControllerMetrics, name: str, **labels: str) -> float | None:
    """One sample; None when there is none."""
    return metrics.registry.get_sample_value(f"inferencerun_{name}", labels)


def of_run(metrics: ControllerMetrics, name: str, **labels: str) -> float | None:
    """One sample of the run `run`."""
    return value(metrics, f"run_{name}", namespace="ns", run="run", **labels)


def test_what_the_status_says_is_shown() -> None:
    """Each number in its place, shards that nobody has claimed included."""
    metrics = shown(
        resource(
            phase="Running",
            progress={"records": 70, "bytes": 700, "totalBytes": 1000, "etaSeconds": 30},
            shards={"total": 10, "complete": 5, "running": 2, "failed": 1},
            workers={"desired": 3, "active": 2, "ready": 1},
            restarts={"total": 4, "counted": 1, "byClass": {"SpotEviction": 3, "Transient": 1}},
            quarantined=2,
            goodput="0.87",
            checkpoint={"everySeconds": "42.5"},
        )
    )

    assert of_run(metrics, "phase", phase="Running") == 1
    assert of_run(metrics, "phase", phase="Pending") is None
    assert (of_run(metrics, "records"), of_run(metrics, "quarantined_records")) == (70, 2)
    assert (of_run(metrics, "done_bytes"), of_run(metrics, "input_bytes")) == (700, 1000)
    assert (of_run(metrics, "remaining_seconds"), of_run(metrics, "goodput_ratio")) == (30, 0.87)
    assert of_run(metrics, "checkpoint_interval_seconds") == 42.5
    assert {
        state: of_run(metrics, "shards", state=state) for state in ("pending", "running", "complete", "failed")
    } == {
        "pending": 2,
        "running": 2,
        "complete": 5,
        "failed": 1,
    }
    assert [of_run(metrics, "workers", state=state) for state in ("desired", "active", "ready")] == [3, 2, 1]
    assert of_run(metrics, "counted_restarts_total") == 1
    restarts = {kind: of_run(metrics, "restarts_total", **{"class": kind}) for kind in FailureClass}
    assert {kind: count for kind, count in restarts.items() if count} == {"SpotEviction": 3, "Transient": 1}
    assert set(restarts.values()) == {0, 1, 3}


def test_a_run_without_status_is_pending() -> None:
    """Applied a moment ago."""
    metadata = {"name": "run", "namespace": "ns", "uid": "u", "resourceVersion": "1"}

    metrics = shown({**make.resource(), "metadata": metadata})

    assert of_run(metrics, "phase", phase="Pending") == 1
    assert of_run(metrics, "records") == 0
    assert of_run(metrics, "remaining_seconds") is None
    assert of_run(metrics, "checkpoint_interval_seconds") is None


def test_runs_are_counted_by_phase() -> None:
    """Every phase has a number in a namespace that has runs."""
    metrics = shown(resource("a", phase="Running"), resource("b", phase="Running"), resource("c", phase="Failed"))

    counts = {phase: value(metrics, "runs", namespace="ns", phase=phase) for phase in Phase}

    assert {phase: count for phase, count in counts.items() if count} == {"Running": 2, "Failed": 1}
    assert None not in counts.values()


def test_a_phase_of_a_newer_version_spoils_nothing() -> None:
    """It is shown as it is; the other runs are shown as ever."""
    metrics = shown(resource("a", phase="Dreaming"), resource("b", phase="Running"))

    assert value(metrics, "run_phase", namespace="ns", run="a", phase="Dreaming") == 1
    assert value(metrics, "run_phase", namespace="ns", run="b", phase="Running") == 1


def test_a_breaker_is_shown_as_it_stands_now() -> None:
    """Open until its probe is due, then half-open, though the status is the same; closed leaves nothing else."""
    memory = RunMemory(
        breaker=RunBreaker(num_openings=1, retry_at=make.later(60)),
        nodes=(NodeBreaker(node="bad", avoided_until=make.later(60)), NodeBreaker(node="good")),
    )

    before, after = (shown(resource(phase="CircuitOpen", memory=memory), at_s=at_s) for at_s in (0, 61))

    assert (of_run(before, "breaker_state", state="open"), of_run(before, "avoided_nodes")) == (1, 1)
    assert (of_run(after, "breaker_state", state="halfOpen"), of_run(after, "avoided_nodes")) == (1, 0)
    assert of_run(after, "breaker_state", state="open") is None
    assert of_run(shown(resource(phase="Running")), "breaker_state", state="closed") == 1


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_run_that_is_over_has_no_breaker(phase: str) -> None:
    """What it died of would otherwise alert for as long as the resource stays."""
    memory = RunMemory(breaker=RunBreaker(num_openings=9, retry_at=make.NOW))

    metrics = shown(resource(phase=phase, memory=memory), at_s=1)

    assert [of_run(metrics, "breaker_state", state=state) for state in ("open", "halfOpen", "closed")] == [None] * 3
    assert of_run(metrics, "avoided_nodes") is None


def test_a_run_that_is_gone_takes_its_series_along() -> None:
    """And one that has changed is read anew."""
    runs = [resource(version=1, quarantined=1)]
    metrics = ControllerMetrics()
    metrics.show(runs=lambda: runs, is_leading=lambda: True, ages_s=dict, now=lambda: make.NOW)
    first = of_run(metrics, "quarantined_records")
    runs[0] = resource(version=2, quarantined=5)
    second = of_run(metrics, "quarantined_records")
    runs.clear()

    assert (first, second) == (1, 5)
    assert b"inferencerun_run_" not in b"".join(
        line for line in metrics.text().splitlines(keepends=True) if not line.startswith(b"#")
    )


def test_leader_and_watches_are_shown() -> None:
    """As the process says when it is asked."""
    metrics = shown()

    assert value(metrics, "controller_leader") == 1
    assert value(metrics, "controller_watch_age_seconds", watch="pods") == 3


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (ObjectChanged(409, "Conflict", "moved on"), "conflict"),
        (ApiUnavailable("no answer"), "unavailable"),
        (Unavailable("k", "503"), "unavailable"),
        (SpecError("not known here"), "error"),
        (ZeroDivisionError(), "error"),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, Exception) else "",
)
def test_reconciles_are_timed_by_how_they_ended(error: Exception, result: str) -> None:
    """The error goes on to whoever handles it."""
    metrics = ControllerMetrics()

    with pytest.raises(type(error)), metrics.reconciling():
        raise error

    counts = {kind: value(metrics, "controller_reconcile_seconds_count", result=kind) for kind in ("ok", result)}
    assert counts == {"ok": 0, result: 1}


def test_replacements_are_timed_by_stage() -> None:
    """In seconds."""
    metrics = ControllerMetrics()
    metrics.replaced(Stage.RUNNING, 12.5)

    assert value(metrics, "controller_replacement_seconds_sum", stage="running") == 12.5
    assert value(metrics, "controller_replacement_seconds_count", stage="created") == 0


def test_a_reconciler_at_work_is_counted(tmp_path: Path) -> None:
    """Reconciles, calls of both stores, and requests to the API server with their status."""

    async def scenario() -> ControllerMetrics:
        async with bench(tmp_path) as found:
            await found.until(lambda: len(found.pods) == 2, "two pods")
            await found.until(lambda: found.status.get("workers", {}).get("active") == 2, "the status to count them")
            return found.metrics

    metrics = asyncio.run(scenario())

    assert (value(metrics, "controller_api_requests_total", method="POST", code="201") or 0) >= 2  # events too
    assert (value(metrics, "controller_api_requests_total", method="WATCH", code="200") or 0) >= 2
    assert (value(metrics, "controller_api_request_seconds_count", method="PATCH") or 0) >= 2
    calls = {"call": "list", "result": "ok"}
    assert (value(metrics, "controller_store_calls_total", store="output", **calls) or 0) >= 2
    assert value(metrics, "controller_store_calls_total", store="input", **calls) == 1
    assert (value(metrics, "controller_reconcile_seconds_count", result="ok") or 0) >= 2


def test_metrics_are_served_beside_the_probes() -> None:
    """On the health port, in the text format, whether it leads or not."""

    async def scenario() -> tuple[int, str, str]:
        metrics = shown(resource(phase="Running"))
        runner = await serve(
            address="127.0.0.1",
            port=0,
            is_ready=lambda: False,
            ages_s=lambda: {"pods": 1000.0},
            limit_s=240.0,
            metrics=metrics.text,
        )
        port = runner.addresses[0][1]
        try:
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/healthz") as reply:
                    assert (reply.status, json.loads(await reply.text())) == (503, {"stale": {"pods": 1000}})
                async with session.get(f"http://127.0.0.1:{port}/metrics") as reply:
                    return reply.status, reply.headers["Content-Type"], await reply.text()
        finally:
            await runner.cleanup()

    status, kind, text = asyncio.run(scenario())

    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert 'inferencerun_run_phase{namespace="ns",phase="Running",run="run"} 1.0' in text.splitlines()
    assert "process_cpu_seconds_total" in text
