"""The chart's CRD without Helm: deploy/crd.yaml is written from it, and tests read it.

The template keeps to whole lines of `{{- if }}` and `{{- end }}`, so it can be rendered by leaving lines out.

    python -m tests.chart.rendering        writes deploy/crd.yaml
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "charts/inferencerun-operator/templates/crd.yaml"
DEPLOYED = ROOT / "deploy/crd.yaml"
HEADER = """\
# The custom resource definition, for kubectl apply. Rendered from the chart: make verify
# Servers older than 1.25 know no x-kubernetes-validations: kubectl create --validate=false drops them there.
"""
CONDITIONS = {".Values.crds.install": True}


def render(*, has_rules: bool = True) -> str:
    """The CRD as Helm renders it for a server with or without CEL rules."""
    text = re.sub(r"\{\{- /\*.*?\*/ -\}\}\n", "", TEMPLATE.read_text(), flags=re.DOTALL)
    lines, shown = [], [True]
    for line in text.splitlines(keepends=True):
        action = re.fullmatch(r"\s*\{\{- (if|end|\$hasRules :=) ?(.*?) ?\}\}\n", line)
        if action is None:
            assert "{{" not in line, f"an action of its own needs its own line: {line!r}"
            if all(shown):
                lines.append(line)
        elif action[1] == "if":
            shown.append({**CONDITIONS, "$hasRules": has_rules}[action[2]])
        elif action[1] == "end":
            shown.pop()
    assert shown == [True], "every if needs its end"
    return "".join(lines)


def crd(*, has_rules: bool = True) -> dict[str, Any]:
    """The CRD, loaded."""
    loaded: dict[str, Any] = yaml.safe_load(render(has_rules=has_rules))
    return loaded


def schema(*, has_rules: bool = True) -> dict[str, Any]:
    """The schema of the one version."""
    (version,) = crd(has_rules=has_rules)["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


if __name__ == "__main__":
    DEPLOYED.parent.mkdir(exist_ok=True)
    DEPLOYED.write_text(HEADER + render())
