"""The corpus: one file for each way in which Kubernetes shows the end of a worker, and what it must be judged as.

    what       the fault, in words
    source     where the shape is from: a version, a proposal or a manual, or the test cluster (tests/corpus/record.py)
    tests      tests that make it happen for real, beside the one that reads this file: path::function
    pod        the last version of the object that was seen
    isGone     the object was deleted since
    node       its node; absent = not placed, or nodes may not be read
    isNodeGone the node was deleted since, this is the last version of it
    shard      what the manifests say: the worker holds one (`held`), has completed it (`complete`), absent = it holds none
    seenAt     when it is judged
    expected   state of the worker, and once that is `ended`: class, chargedTo, and where they are not the default
               isPermanent (false) and nodeScore (0)

`seen` and `verdict` go the way that the controller goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from contract.manifest import ShardManifest
from controller.failure_policy import Verdict, classify
from controller.observed import WorkerView
from controller.pods import NodeFacts, gone, gone_node, read_node, read_pod, worker_view
from tests import make

FOLDER = Path(__file__).parent
RUN_UID = "5f2c6a52-0c3e-4a43-9c0b-2f8d9f3c7a10"
MANIFESTS = {"held": make.held(), "complete": make.complete()}
FIELDS = {"what", "source", "tests", "pod", "isGone", "node", "isNodeGone", "shard", "seenAt", "expected"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What it must be judged as; without a class it has not ended."""

    state: str
    failure_class: str | None = None
    charged_to: str | None = None
    is_permanent: bool = False
    node_score: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One file."""

    name: str
    what: str
    source: str
    tests: tuple[str, ...]
    pod: Mapping[str, Any]
    is_gone: bool
    node: Mapping[str, Any] | None
    is_node_gone: bool
    manifest: ShardManifest | None
    seen_at: datetime
    expected: Expected


@cache
def cases() -> tuple[Case, ...]:
    """All files, by name."""
    return tuple(load(path) for path in sorted(FOLDER.glob("*.yaml")))


def load(path: Path) -> Case:
    """The case in a file."""
    found = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    assert set(found) <= FIELDS, f"{path.name}: unknown fields {set(found) - FIELDS}"
    expected = found["expected"]
    return Case(
        name=path.stem,
        what=found["what"],
        source=found["source"],
        tests=tuple(found.get("tests", ())),
        pod=found["pod"],
        is_gone=found.get("isGone", False),
        node=found.get("node"),
        is_node_gone=found.get("isNodeGone", False),
        manifest=MANIFESTS[found["shard"]] if "shard" in found else None,
        seen_at=datetime.fromisoformat(found["seenAt"]),
        expected=Expected(
            state=expected["state"],
            failure_class=expected.get("class"),
            charged_to=expected.get("chargedTo"),
            is_permanent=expected.get("isPermanent", False),
            node_score=expected.get("nodeScore", 0),
        ),
    )


def seen(case: Case) -> WorkerView:
    """The worker as the controller sees it."""
    return shown(case, case.pod, case.node)


def shown(case: Case, pod: Mapping[str, Any], node: Mapping[str, Any] | None) -> WorkerView:
    """The same, with other objects than those of the file."""
    found = read_pod(pod)
    return worker_view(
        gone(found) if case.is_gone else found,
        node=None if node is None else _node(node, is_gone=case.is_node_gone),
        run_uid=RUN_UID,
        now=case.seen_at,
    )


def verdict(case: Case, worker: WorkerView) -> Verdict | None:
    """The verdict on it; None while it has not ended."""
    return None if worker.evidence is None else classify(worker.evidence, case.manifest)


def _node(node: Mapping[str, Any], *, is_gone: bool) -> NodeFacts:
    return gone_node(read_node(node)) if is_gone else read_node(node)
