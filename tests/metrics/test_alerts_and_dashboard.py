"""Alerts and dashboard ask only for what there is, and say what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.metrics.test_reference import CODE

ROOT = Path(__file__).parents[2]
FILES = ROOT / "charts/inferencerun-operator/files"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in ALERTS},
    **{f"{title}: {query}": query for title, query in QUERIES},
}
PART = re.compile(r"_(bucket|count|sum)$")
ADDED_BY_PROMETHEUS = {"namespace", "pod", "instance", "le", "job"}


def of_series(name: str) -> str:
    """The metric that a series belongs to: `x_bucket` is one of the histogram `x`."""
    return name if name in CODE else PART.sub("", name)


def test_there_is_something_to_look_at() -> None:
    """The tests below are not vacuous."""
    assert len(ALERTS) >= 8
    assert len(PANELS) >= 30
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_only_metrics_and_labels_of_the_code_are_asked_for(expression: str) -> None:
    """A metric or label that is renamed would leave a panel empty, and an alert silent for ever."""
    asked = set(re.findall(r"\binferencerun_\w+", expression))
    labels = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!=|!~|=)", expression))
    grouped = {
        item.strip() for found in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression) for item in found.split(",")
    }

    assert asked
    assert {name for name in asked if of_series(name) not in CODE} == set()
    known = {label for name in asked for label in CODE[of_series(name)].labels}
    assert (labels | grouped) - known - ADDED_BY_PROMETHEUS == set()


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    """What nobody looks at need not be counted; but for what the dashboard's variables ask."""
    asked = {of_series(name) for text in EXPRESSIONS.values() for name in re.findall(r"\binferencerun_\w+", text)}

    assert set(CODE) - asked == set()


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alerts_say_what_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    """A sentence to read at night, a paragraph to act by, and where to read on."""
    annotations = rule["annotations"]

    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert len(annotations["description"]) > 100
    page, _, anchor = annotations["runbook_url"].partition("#")
    assert f'<a id="{anchor}"></a>' in (ROOT / page).read_text().splitlines()


def test_the_page_lists_the_alerts() -> None:
    """All of them, and none that is gone."""
    page = (ROOT / "docs/metrics.md").read_text()

    assert re.findall(r"^\| `(InferenceRun\w+)` \|", page, re.MULTILINE) == [rule["alert"] for rule in ALERTS]


def test_alerts_name_only_panels_that_exist() -> None:
    """Descriptions send people to the dashboard."""
    text = " ".join(" ".join(rule["annotations"]["description"] for rule in ALERTS).split())
    titles = {panel["title"] for panel in PANELS}

    named = re.findall(r"[Pp]anels? “([^”]+)”(?: and “([^”]+)”)?", text)

    assert named
    assert {title for pair in named for title in pair if title} <= titles


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_are_complete(panel: dict[str, Any]) -> None:
    """Title, a data source that can be chosen, and a unit."""
    assert panel["title"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_panels_do_not_overlap() -> None:
    """Each cell of the grid is one panel's."""
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
