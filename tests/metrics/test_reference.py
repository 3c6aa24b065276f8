"""docs/metrics.md is the code's own list of metrics: name, type, labels, meaning and unit, both ways."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from controller.metrics import ControllerMetrics
from tests import make
from worker.metrics import WorkerMetrics

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(inferencerun_\w+)` \| (\w+) \| (.*?) \| (.*?) \| (.*) \|$", re.MULTILINE)
PREFIX = "inferencerun_"
UNITS = ("seconds", "bytes", "ratio")
"""Units that a name must end in, before `_total`; Prometheus' base units. Others are counts of things."""


@dataclass(frozen=True)
class Described:
    """One metric."""

    kind: str
    labels: tuple[str, ...]
    meaning: str


def of_code(registry: CollectorRegistry) -> dict[str, Described]:
    """Every metric that a registry can give, with values or without."""
    found: dict[str, Described] = {}
    for collector in registry._collector_to_names:
        families: Any = [collector] if hasattr(collector, "_labelnames") else getattr(collector, "describe", list)()
        for family in families:
            kind = getattr(family, "_type", None) or family.type
            name = getattr(family, "_name", None) or family.name
            meaning = getattr(family, "_documentation", None) or family.documentation
            if name.startswith(PREFIX):
                full_name = f"{name}_total" if kind == "counter" else name
                found[full_name] = Described(kind, tuple(family._labelnames), meaning)
    return found


def of_page() -> dict[str, tuple[Described, str]]:
    """Every metric in the tables, and its unit."""
    text = (ROOT / "docs/metrics.md").read_text()
    return {
        name: (Described(kind, tuple(re.findall(r"`(\w+)`", labels)), meaning), unit)
        for name, kind, labels, unit, meaning in ROW.findall(text)
    }


def of_controller() -> CollectorRegistry:
    """Everything a controller shows."""
    metrics = ControllerMetrics()
    metrics.show(runs=list, is_leading=lambda: True, ages_s=dict, now=lambda: make.NOW)
    return metrics.registry


CODE = of_code(WorkerMetrics(run="run").registry) | of_code(of_controller())
PAGE = of_page()


def test_the_page_lists_exactly_the_metrics_of_the_code() -> None:
    """None is undocumented, none is documented and gone."""
    assert len(CODE) >= 35
    assert set(PAGE) == set(CODE)


@pytest.mark.parametrize("name", sorted(CODE))
def test_each_row_says_what_the_code_does(name: str) -> None:
    """Type, labels in their order, and the help text."""
    described, _ = PAGE[name]

    assert described == CODE[name]


@pytest.mark.parametrize("name", sorted(CODE))
def test_names_follow_the_rules(name: str) -> None:
    """Counters end in _total; a base unit in the name is the unit of the row, and the other way round."""
    described, unit = PAGE[name]
    stem = name.removesuffix("_total")

    assert (described.kind == "counter") == name.endswith("_total")
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
    assert [known for known in UNITS if stem.endswith(f"_{known}")] == ([unit] if unit in UNITS else [])
    assert not re.search(r"milli|minute|hour|kilo|mega|percent", name)


@pytest.mark.parametrize("name", sorted(CODE))
def test_no_label_has_a_value_for_each_worker_or_record(name: str) -> None:
    """What grows with the cluster or the input is no label."""
    assert not set(CODE[name].labels) & {"pod", "uid", "shard", "node", "epoch", "attempt", "slot", "record", "key"}
