"""The chart as Helm renders it, and what is made of it: the copies for plain kubectl in deploy/, the table in its README.

`python -m tests.chart.rendering` writes them all.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import helm_python
import yaml
from helm_python import _native

from tests.chart.values_table import described, with_table

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/inferencerun-operator"
README = CHART / "README.md"
VALUES = CHART / "values.yaml"
CRD = "inferencerun-operator/templates/crd.yaml"
NEWEST = "v1.30.0"
"""A Kubernetes that knows all that the chart uses."""
OLDEST = "v1.20.0"
RELEASE = "inferencerun-operator"
NAMESPACE = "inferencerun"

CRD_COPY = ROOT / "deploy/crd.yaml"
CRD_HEADER = """\
# The custom resource definition, for kubectl apply. Rendered from the chart: make verify
# Servers older than 1.25 know no x-kubernetes-validations: kubectl create --validate=false drops them there.
"""
INSTALL_COPY = ROOT / "deploy/install.yaml"
INSTALL_HEADER = f"""\
# All that the chart installs with its default values, for kubectl apply. Rendered from the chart: make verify
# Change the two images to where yours are. For Kubernetes 1.25 and newer; on older servers use Helm.
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
"""


@functools.cache
def chart() -> helm_python.Chart:
    """The chart, loaded."""
    return helm_python.Chart.load(CHART)


def texts(
    values: dict[str, Any] | None = None,
    *,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    kubernetes: str = NEWEST,
    apis: tuple[str, ...] = (),
) -> dict[str, str]:
    """What Helm makes of each template.

    Args:
        values: over the chart's own.
        release: name of it.
        namespace: of the release.
        kubernetes: version of the server.
        apis: that the server has beside Kubernetes' own.
    """
    # The package's own `render` passes on no version, though the library takes one.
    options = {"name": release, "namespace": namespace, "kube_version": kubernetes, "api_versions": list(apis)}
    text = _native.call_string("helm_render", chart()._raw(), json.dumps(values or {}), json.dumps(options))
    rendered: dict[str, str] = json.loads(text)
    return rendered


def objects(values: dict[str, Any] | None = None, **options: Any) -> list[dict[str, Any]]:
    """The objects that the chart makes; arguments as of `texts`."""
    return [
        found
        for name, text in texts(values, **options).items()
        if name.endswith(".yaml")
        for found in yaml.safe_load_all(text)
        if found is not None
    ]


def render(*, has_rules: bool = True) -> str:
    """The CRD for a server with or without CEL rules."""
    return texts(kubernetes=NEWEST if has_rules else OLDEST)[CRD].lstrip("\n")


def install() -> str:
    """Everything in one text: namespace and CRD first, what uses all the rest last."""
    rendered = texts()
    names = sorted(rendered, key=lambda name: (name != CRD, "deployment" in name, name))
    # Nobody but Helm should say that Helm has these objects in its care.
    labels = re.compile(r"^ *(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", re.MULTILINE)
    parts = [labels.sub("", rendered[name]).strip("\n") for name in names if name.endswith(".yaml")]
    return INSTALL_HEADER + "".join(f"---\n{part.removeprefix('---').lstrip()}\n" for part in parts if part)


def readme() -> str:
    """The chart's README with the table of its values."""
    return with_table(README.read_text(), described(VALUES.read_text()))


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
    CRD_COPY.write_text(CRD_HEADER + render())
    INSTALL_COPY.write_text(install())
    README.write_text(readme())
