"""Settings of the controller, from the environment. Each has a default that suits a cluster of some hundred GPUs."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from contract.errors import SpecError

PREFIX = "INFERENCERUN_CONTROLLER_"
"""`INFERENCERUN_CONTROLLER_API_QPS` is the setting `api_qps`."""
_SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_(HOST|PORT)(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_.*)?)?)")
"""Variables that the kubelet makes of each Service: one named like us must not keep us from starting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one controller process."""

    worker_image: str = ""
    """Image of worker pods. Required; a run's template may name another."""
    worker_image_pull_policy: str = ""
    """Empty = the API server's default: Always for `latest`, else IfNotPresent."""
    worker_service_account: str = ""
    """Service account of worker pods, which on most clouds carries the right to read and write the store; empty = the
    namespace's default."""
    watch_namespace: str = ""
    """Only runs of this namespace; empty = all. A role within the namespace is enough then, but for nodes."""
    watch_nodes: bool = True
    """`false` where nodes may not be read: evictions are told by the pods alone, and workers on a node that is lost are
    replaced only once Kubernetes gives up their pods."""
    lease_namespace: str = "default"
    """Where the Lease lies that elects one of several controllers."""
    lease_name: str = "inferencerun-operator"
    lease_duration_s: float = 15.0
    """A leader that has been silent for so long is replaced. Clocks need not agree: each counts for itself."""
    lease_renew_deadline_s: float = 10.0
    """A leader that could not renew for so long ends, some seconds before anybody else may lead."""
    lease_retry_s: float = 2.0
    identity: str = field(default_factory=platform.node)
    """Name in the Lease; the pod's name, which is its host name."""
    api_qps: float = 50.0
    """Writes a second to the API server; 50 is what the job controllers of Kubernetes itself are given."""
    api_burst: int = 100
    poll_s: float = 5.0
    """Between two looks at the manifests of a run whose workers are at work: how old its progress may be. One listing, and
    a read of each manifest that changed. Ends of pods are seen at once."""
    min_interval_s: float = 0.2
    """Between two reconciles of one run: what happens in between is looked at together."""
    store_threads: int = 32
    """Runs whose stores may be waited for at one time; a store that does not answer holds a thread for a minute."""
    health_port: int = 8080
    """Of /healthz, /readyz and /metrics, on all addresses; 0 = any free one (it is logged)."""
    health_address: str = "0.0.0.0"  # noqa: S104  (the kubelet probes the pod's address)
    stale_watch_s: float = 240.0
    """A watch from which nothing has come for so long, bookmarks included, fails the liveness probe."""
    log_level: str = "INFO"


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in the environment.

    Raises:
        SpecError: names each variable that cannot be used, and what is expected.
    """
    environment = os.environ if environment is None else environment
    known = {PREFIX + item.name.upper(): item for item in fields(Settings)}
    problems = [
        f"{name}: no such setting"
        for name in environment
        if name.startswith(PREFIX) and name not in known and not _SERVICE_LINK.fullmatch(name.removeprefix(PREFIX))
    ]
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name not in environment:
            continue
        convert, expected, is_right = _KINDS[str(item.type)]
        try:
            value = convert(environment[name])
        except ValueError:
            value = None
        if value is None or not is_right(value):
            problems.append(f"{name}: {environment[name]!r} cannot be used; write {expected}")
        values[item.name] = value
    if not values.get("worker_image"):
        problems.append(f"{PREFIX}WORKER_IMAGE: not set; name the image of worker pods")
    if problems:
        raise SpecError("settings of the controller:\n  " + "\n  ".join(problems))
    return Settings(**values)


_KINDS: dict[str, tuple[Callable[[str], Any], str, Callable[[Any], bool]]] = {
    "str": (str, "text", lambda _value: True),
    "int": (int, "a number, 0 or more", lambda value: value >= 0),
    "float": (float, "a positive number", lambda value: value > 0),
    "bool": ({"true": True, "false": False}.get, "true or false", lambda _value: True),
}
