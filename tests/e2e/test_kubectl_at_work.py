"""The kubectl plug-in on runs that really run, and on workers whose kubelet says why they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.e2e.conftest import Bucket, Run
from tests.e2e.operator import CHECKPOINT_OFTEN, SLOW_MODEL, Api, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

Plugin = Callable[..., str]


@pytest.fixture
def plugin(cluster: Cluster, bucket: Bucket) -> Plugin:
    """Standard output of the plug-in; it fails on other exit codes than 0 and 1."""
    environment = {**os.environ, **bucket.server.environment, "KUBECONFIG": str(cluster.kubeconfig)}

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cli.kubectl", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode in {0, 1}, done.stderr
        return done.stdout

    return call


def findings(plugin: Plugin, name: str) -> dict[str, dict[str, Any]]:
    """What `doctor` finds, by code."""
    return {item["code"]: item for item in json.loads(plugin("doctor", name, "--json"))["findings"]}


def test_a_run_is_followed_from_its_first_shard_to_its_rows(run: Run, api: Api, plugin: Plugin) -> None:
    """Which worker holds which shard, what they say, suspend and resume that wait, the end, where the rows are."""
    run.apply(copies=4, model=SLOW_MODEL, checkpoint=CHECKPOINT_OFTEN)
    run.wait_for_records(1)

    status, doctor = json.loads(plugin("status", run.name, "--json")), findings(plugin, run.name)
    logs = plugin("logs", run.name, "--tail", "20")
    suspended = plugin("suspend", run.name, "--wait")
    partly = json.loads(plugin("results", run.name, "--json"))
    resumed = plugin("resume", run.name, "--wait")
    lines = plugin("watch", run.name, "--json").splitlines()
    results = json.loads(plugin("results", run.name, "--json"))

    assert any(item["shard"] is not None and item["node"] for item in status["workers"]), status
    assert all(item["severity"] == "note" for item in doctor.values()), doctor
    assert "[0] " in logs
    assert '"message"' not in logs
    assert "no worker is left" in suspended
    assert "goes on" in resumed
    assert (partly["complete"], results["complete"]) == (False, True)
    assert 0 < partly["records"] < results["records"] == 800
    assert json.loads(lines[-1])["status"]["phase"] == "Succeeded"
    assert "fine: 0 problem(s)" in plugin("verify", run.name)


def test_doctor_finds_an_image_that_is_not_there(run: Run, plugin: Plugin) -> None:
    """In the kubelet's words: of the pod while it waits, of the breaker once the controller has judged it."""
    container = {"name": "worker", "image": "registry.invalid/no-such:1", "imagePullPolicy": "Never"}
    run.apply(workers={"count": 1, "template": {"spec": {"containers": [container]}}})

    found = wait_for(lambda: named(findings(plugin, run.name), "Image", "CircuitOpen"), "the image to be found")

    assert "ErrImageNeverPull" in found["evidence"], found


def test_doctor_finds_a_secret_that_is_not_there(run: Run, plugin: Plugin) -> None:
    """By its name."""
    container = {"name": "worker", "envFrom": [{"secretRef": {"name": "store-credentials"}}]}
    run.apply(workers={"count": 1, "template": {"spec": {"hostNetwork": True, "containers": [container]}}})

    found = wait_for(
        lambda: named(findings(plugin, run.name), "SecretMissing", "CircuitOpen"), "the Secret to be found"
    )

    assert 'secret "store-credentials" not found' in found["evidence"], found


def test_doctor_finds_that_no_node_has_a_gpu(run: Run, plugin: Plugin) -> None:
    """The scheduler's word, checked against what the nodes offer."""
    run.apply(workers={"count": 1, "gpusPerWorker": 1})

    found = wait_for(lambda: findings(plugin, run.name).get("NoGpuNodes"), "the missing GPUs to be found")

    assert found["summary"] == "1 worker waits for a node: no node offers nvidia.com/gpu."


def named(found: dict[str, dict[str, Any]], *codes: str) -> dict[str, Any] | None:
    """The first of these findings that is there."""
    return next((found[code] for code in codes if code in found), None)
