"""A run as the cluster has it: the resource, its output, its pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.kubectl.api import Object, ObjectMissing, core_path, run_path
from cli.kubectl.options import Access
from contract.errors import SpecError
from contract.names import API_GROUP, LABEL_RUN_UID
from contract.store.open import normalised_uri
from controller.wording import NamedRun


def find_run(access: Access, name: str) -> Object:
    """The resource.

    Raises:
        SpecError: there is none of that name, or the cluster does not know the kind at all.
    """
    try:
        return access.api.get(run_path(access.namespace, name))
    except ObjectMissing as error:
        if f'"{name}" not found' in str(error):
            raise SpecError(
                f"no InferenceRun {name!r} in namespace {access.namespace!r}; 'kubectl get irun -A' lists all there are"
            ) from error
        raise SpecError(
            f"this cluster knows no InferenceRun ({API_GROUP}); install the operator, or choose another --context; "
            "'kubectl inferencerun doctor' says more"
        ) from error


def output_uri(run: Mapping[str, Any]) -> str:
    """Where the run writes, normalised. Raises SpecError when its spec says nothing usable."""
    return normalised_uri(written_output(run))


def written_output(run: Mapping[str, Any]) -> str:
    """`spec.output.uri` as somebody wrote it; empty when it is missing."""
    return ((run.get("spec") or {}).get("output") or {}).get("uri") or ""


def named(run: Mapping[str, Any]) -> NamedRun:
    """The run for texts about it. Raises SpecError as `output_uri` does."""
    metadata = run["metadata"]
    return NamedRun(name=metadata["name"], namespace=metadata["namespace"], output_uri=output_uri(run))


def pods_of(access: Access, run: Mapping[str, Any]) -> list[Object]:
    """Its worker pods that still exist. Raises Forbidden."""
    selector = f"{LABEL_RUN_UID}={run['metadata']['uid']}"
    return access.api.list_all(core_path(access.namespace, "pods"), labelSelector=selector)
