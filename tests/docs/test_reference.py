"""What can be set or seen is documented: fields of a run, values of the chart, metrics, alerts."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.docs import spec_reference
from tests.docs.documents import ROOT, Document

CHART = ROOT / "charts" / "inferencerun-operator"


def test_the_page_of_fields_is_that_of_the_definition() -> None:
    """`python -m tests.docs.spec_reference` writes it; `make verify` runs that."""
    assert spec_reference.PAGE.read_text() == spec_reference.page()


def test_no_field_is_without_a_meaning() -> None:
    """A description in the definition is what both the page and `kubectl explain` show."""
    rows = [line for line in spec_reference.page().splitlines() if line.startswith("| `")]

    assert len(rows) > 50
    assert [row for row in rows if row.endswith("|  |")] == []


def leaves(values: dict[str, Any], path: str = "") -> list[str]:
    """Paths of all values."""
    return [
        found
        for name, value in values.items()
        for found in (leaves(value, f"{path}{name}.") if isinstance(value, dict) and value else [f"{path}{name}"])
    ]


def test_every_value_of_the_chart_is_in_its_readme() -> None:
    """By its path, or that of a group that is set as a whole."""
    text = (CHART / "README.md").read_text()
    documented = set(re.findall(r"`([\w.]+)`", text))
    values = leaves(yaml.safe_load((CHART / "values.yaml").read_text()))

    assert len(values) > 30
    assert [
        value for value in values if not any(value == name or value.startswith(f"{name}.") for name in documented)
    ] == []


def test_the_security_page_names_the_rights_of_the_controller() -> None:
    """Those that deploy/install.yaml, the rendered chart, gives to its account; roles for people are not among them."""
    objects = [item for item in yaml.safe_load_all((ROOT / "deploy" / "install.yaml").read_text()) if item]
    bound = {item["roleRef"]["name"] for item in objects if item["kind"] in {"RoleBinding", "ClusterRoleBinding"}}
    granted: dict[str, set[str]] = {}
    for item in objects:
        if item["kind"] in {"Role", "ClusterRole"} and item["metadata"]["name"] in bound:
            for rule in item["rules"]:
                for resource in rule["resources"]:
                    granted.setdefault(resource, set()).update(rule["verbs"])
    section = (
        (ROOT / "docs" / "security.md").read_text().split("## What the operator may do", 1)[1].split("\n## ", 1)[0]
    )
    documented = {
        row[1].strip(" `"): set(re.findall(r"[a-z]+", row[2]))
        for row in (line.split("|") for line in section.splitlines())
        if len(row) > 3 and row[1].strip().startswith("`")
    }

    assert documented == granted


def alerts() -> list[dict[str, Any]]:
    """All alerting rules."""
    groups = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_leads_to_a_section_of_the_runbook(rule: dict[str, Any]) -> None:
    """Somebody is woken by it, and needs to know what to do."""
    url = rule["annotations"].get("runbook_url", "docs/runbook.md#no-leader")
    path, _, anchor = url.partition("#")

    assert path.endswith("docs/runbook.md")
    assert anchor in Document(ROOT / "docs" / "runbook.md").anchors


def test_every_metric_in_alerts_and_dashboard_is_documented() -> None:
    """None is asked for that no page explains."""
    asked = set(re.findall(r"\binferencerun_\w+", "".join(path.read_text() for path in (CHART / "files").iterdir())))
    documented = set(re.findall(r"\binferencerun_\w+", (ROOT / "docs" / "metrics.md").read_text()))
    series = {name + suffix for name in documented for suffix in ("", "_bucket", "_sum", "_count")}

    assert asked
    assert asked - series == set()
