"""docs/kubectl-plugin.md shows what the commands print: each example is run here, on the cluster that they all tell of."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.kubectl.main import COMMANDS
from contract.layout import build_log_key
from contract.manifest import Attempt, Owner, Restarts, stamp
from contract.names import FailureClass
from contract.store.local import LocalStore
from tests.cli import outputs
from tests.cli.kubectl.cluster import FakeCluster
from tests.cli.kubectl.test_doctor import install
from tests.controller.api_server import Object

DOCUMENT = Path(__file__).resolve().parents[3] / "docs/kubectl-plugin.md"
EXAMPLES = re.findall(r"```console\n\$ kubectl inferencerun ([^\n]*)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
URI = "s3://bucket/runs/swissprot"
NOW = outputs.NOW + timedelta(seconds=12)


class _FixedTime(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return NOW


class _NamedStore(LocalStore):
    """A directory that goes by another name."""

    @property
    def uri(self) -> str:
        return URI


@pytest.fixture
def told(cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """Run `swissprot` at work on eight shards with two workers, the second of which waits for a GPU."""
    monkeypatch.setattr(outputs, "OWNER", Owner(pod="swissprot-0-0", uid="uid-swissprot-0-0", node="gpu-1"))
    made = outputs.make_output(tmp_path, only_shards=[0, 1, 2], stop_after={2: 2}, is_finished=False, name="swissprot")
    made.overwrite(
        replace(
            made.manifest(0),
            attempts=(EVICTED,),
            restarts=Restarts(total=1, counted=0, by_class=((EVICTED.failure_class.value, 1),)),
        )
    )
    last_words = "".join(f"{json.dumps(line)}\n" for line in LAST_WORDS)
    made.store.put_create(build_log_key(1, EVICTED.pod, EVICTED.uid), last_words.encode())
    monkeypatch.setattr("cli.output.open_store", lambda _uri: _NamedStore(str(tmp_path / "out")))
    monkeypatch.setattr("cli.output.datetime", _FixedTime)
    monkeypatch.setattr("cli.kubectl.gathering.look_at_store", lambda _run: None)
    monkeypatch.chdir(tmp_path)
    install(cluster)
    lease = next(item for item in cluster.server.objects.values() if "holderIdentity" in item.get("spec", {}))
    lease["spec"]["renewTime"] = NOW.isoformat()
    cluster.apply(output=URI, **status(len(made.plan.shards)))
    cluster.add_pod(0, node="gpu-1")
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    waiting = cluster.add_pod(1, node="", state="none", conditions=[unplaced])
    waiting["metadata"]["creationTimestamp"] = stamp(NOW - timedelta(minutes=4))
    node = {"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    cluster.server.put(
        "/api/v1/nodes/gpu-1", {**node, "status": {**node["status"], "allocatable": {"nvidia.com/gpu": "1"}}}
    )
    cluster.server.logs["swissprot-0-0"] = "".join(f"{json.dumps(line)}\n" for line in LOG)
    return cluster


EVICTED = Attempt(
    pod="swissprot-1-0",
    uid="uid-1",
    node="gpu-2",
    epoch=1,
    failure_class=FailureClass.SPOT_EVICTION,
    evidence="disruption DeletionByTaintManager; exit 143",
    counted=False,
    ended_at=NOW - timedelta(minutes=30),
    held_seconds=610.0,
)
LAST_WORDS = (
    {"time": "2026-03-01T11:29:58.300+00:00", "level": "info", "message": "drain asked for", "shard": 0},
    {"time": "2026-03-01T11:30:04.800+00:00", "level": "info", "message": "shard released", "shard": 0, "records": 13},
)
LOG = (
    {"time": "2026-03-01T11:59:58.120+00:00", "level": "info", "message": "shard claimed", "shard": 2, "epoch": 1},
    {
        "time": "2026-03-01T12:00:00.420+00:00",
        "level": "info",
        "message": "checkpoint committed",
        "shard": 2,
        "number": 2,
        "records": 4,
    },
)


def status(num_shards: int) -> dict[str, Any]:
    """What the controller says of it."""
    return {
        "phase": "Running",
        "progress": {
            "records": 36,
            "bytes": 2412,
            "totalBytes": 5360,
            "percent": "45.0",
            "recordsPerSecond": "2.3",
            "etaSeconds": 23,
        },
        "shards": {"total": num_shards, "complete": 2, "running": 1, "failed": 0},
        "workers": {"desired": 2, "active": 2, "ready": 1},
        "restarts": {"total": 1, "counted": 0, "byClass": {"SpotEviction": 1}},
        "quarantined": 2,
        "goodput": "0.87",
        "conditions": [
            {"type": "Accepted", "status": "True", "reason": "Valid", "lastTransitionTime": "2026-03-01T11:00:00Z"},
            {
                "type": "Progressing",
                "status": "True",
                "reason": "Running",
                "lastTransitionTime": "2026-03-01T11:01:00Z",
            },
        ],
        "lastFailures": [
            {
                "time": stamp(EVICTED.ended_at),
                "pod": EVICTED.pod,
                "node": EVICTED.node,
                "class": EVICTED.failure_class.value,
                "evidence": EVICTED.evidence,
                "advice": "",
            }
        ],
    }


def ends(cluster: FakeCluster) -> Callable[[float], None]:
    """Instead of sleeping between two looks: the run succeeds."""

    def sleep(_seconds: float) -> None:
        run: Object = cluster.resource()
        now = run["status"]
        over = {
            "phase": "Succeeded",
            "progress": {**now["progress"], "percent": "100.0", "records": 80, "etaSeconds": 0},
            "shards": {**now["shards"], "complete": now["shards"]["total"], "running": 0},
        }
        cluster.apply(output=URI, **{**run["status"], **over})

    return sleep


@pytest.mark.parametrize(("arguments", "expected"), EXAMPLES, ids=[item[0] for item in EXAMPLES])
def test_an_example_is_what_the_command_prints(
    told: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, expected: str
) -> None:
    """Word for word, at the time of the example; but for the width of columns, which hold this machine's paths here."""
    monkeypatch.setattr("cli.kubectl.watch.time.sleep", ends(told))

    result = told.run(*shlex.split(arguments))

    assert result.exit_code in {0, 1}, result.output
    assert _without_widths(result.stdout.replace(f"file://{tmp_path}", "s3://bucket/in")) == _without_widths(expected)


def test_each_command_has_an_example() -> None:
    """But for the script of a shell."""
    assert {item[0].split()[0] for item in EXAMPLES} == COMMANDS.keys() - {"completion"}


def _without_widths(text: str) -> list[str]:
    """Without what depends on the length of paths: columns, and sizes of files that hold them."""
    return [re.sub(r"[\d.]+ KiB", "1 KiB", re.sub(" {2,}", "  ", line)) for line in text.splitlines()]
