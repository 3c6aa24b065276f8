"""Tests of how workers are shown."""

from __future__ import annotations

from typing import Any

import pytest

from cli.kubectl.workers import state_text, worker_rows
from controller.pods import read_pod
from tests.make import held, later, with_checkpoint


def pod(spec: dict[str, Any], status: dict[str, Any], **metadata: Any) -> Any:
    """A worker pod's facts."""
    return read_pod(
        {
            "metadata": {"namespace": "n", "name": "run-0-0", "uid": "uid-0", "labels": {}, **metadata},
            "spec": spec,
            "status": status,
        }
    )


def worker(state: dict[str, Any]) -> dict[str, Any]:
    """A status with the worker's container in this state."""
    return {"phase": "Pending", "containerStatuses": [{"name": "worker", "state": state}]}


@pytest.mark.parametrize(
    ("spec", "status", "metadata", "expected"),
    [
        ({}, {"phase": "Pending"}, {}, "waits for a node"),
        ({"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}, {"phase": "Pending"}, {}, "waits for its queue"),
        ({"nodeName": "a"}, worker({"waiting": {"reason": "ContainerCreating"}}), {}, "starting"),
        ({"nodeName": "a"}, worker({"waiting": {"reason": "ImagePullBackOff"}}), {}, "ImagePullBackOff"),
        ({"nodeName": "a"}, worker({"running": {"startedAt": "2026-01-01T12:00:00Z"}}), {}, "running"),
        (
            {"nodeName": "a"},
            worker({"running": {"startedAt": "2026-01-01T12:00:00Z"}}),
            {"deletionTimestamp": "2026-01-01T12:00:00Z"},
            "draining",
        ),
        ({"nodeName": "a"}, worker({"terminated": {"exitCode": 1}}), {}, "ended"),
    ],
)
def test_a_pods_state_in_a_word(
    spec: dict[str, Any], status: dict[str, Any], metadata: dict[str, str], expected: str
) -> None:
    """What matters most comes first."""
    assert state_text(pod(spec, status, **metadata)) == expected


def test_a_worker_is_shown_with_the_shard_it_holds() -> None:
    """By uid: a pod of the same name that came later holds nothing. The rate is that of its recent checkpoints."""
    manifest = with_checkpoint(held(uid="uid-0", done=20), 20, 60)
    facts = pod({"nodeName": "a"}, worker({"running": {"startedAt": "2026-01-01T12:00:00Z"}}))

    (mine,) = worker_rows([facts], {0: manifest}, now=later(100))
    (other,) = worker_rows([facts], {0: held(uid="uid-1")}, now=later(100))
    (old,) = worker_rows([facts], {0: manifest}, now=later(10_000))

    assert (mine.shard, mine.records, mine.records_per_s) == (0, 60, 3.0)
    assert other.shard is None
    assert old.records_per_s is None
