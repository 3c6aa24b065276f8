"""The kubectl plug-in before a real API server: no nodes, no controller, statuses written by hand.

What it says of a run at work is seen in the tests with nodes; here is what only an API server can say: its words for what
is missing, refused or waits, its scale subresource, its rights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contract.names import ANNOTATION_RETRY
from tests.cluster.cluster import Cluster
from tests.e2e.operator import NAMESPACE, RUNS, Api, resource

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PROJECT = Path(__file__).resolve().parents[2]
STATUS = {
    "phase": "Running",
    "observedGeneration": 1,
    "progress": {"records": 10, "bytes": 500, "totalBytes": 1000, "percent": "50.0", "recordsPerSecond": "2.5"},
    "shards": {"total": 4, "complete": 1, "running": 2, "failed": 0},
    "workers": {"desired": 2, "active": 2, "ready": 2, "selector": "a=b"},
    "restarts": {"total": 0, "counted": 0, "byClass": {}},
    "quarantined": 0,
    "goodput": "0.90",
}


@dataclass
class Bare:
    """A control plane alone, with the definition."""

    kubeconfig: Path
    api: Api

    def plugin(self, *arguments: str, exit_code: int = 0) -> str:
        """Standard output of the plug-in, as a program of its own; on errors standard error."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(
            [sys.executable, "-m", "cli.kubectl", *arguments],
            env={**environment, "KUBECONFIG": str(self.kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == exit_code, f"{done.stdout}\n{done.stderr}"
        return done.stdout if exit_code in {0, 1} else done.stderr

    def apply(self, name: str, **changes: Any) -> None:
        """A run whose store nobody reaches."""
        self.api.apply(resource(name, ["s3://bucket/in/"], f"s3://bucket/{name}", "http://127.0.0.1:9", **changes))

    def write_status(self, name: str, **status: Any) -> None:
        """What a controller would say of it."""
        body = {"status": {**STATUS, **status}}
        self.api.custom.patch_namespaced_custom_object_status(*RUNS, name, body)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """One for all tests of this file: an API server, the scheduler and the controllers of Kubernetes, no node."""
    with Cluster(tmp_path_factory.mktemp("bare"), nodes=0) as cluster:
        api = Api(cluster.kubeconfig)
        api.install_crd(PROJECT / "deploy/crd.yaml")
        yield Bare(cluster.kubeconfig, api)


def test_status_shows_what_the_controller_wrote(bare: Bare) -> None:
    """From the resource alone, with credentials for nothing else."""
    bare.apply("shown")
    bare.write_status("shown")

    text, fields = bare.plugin("status", "shown"), json.loads(bare.plugin("status", "shown", "--json"))

    assert "50.0 % of 1000 B" in text
    assert "Shards are not shown" in text
    assert fields["status"]["shards"]["total"] == 4


def test_scale_suspend_resume_and_retry_change_what_they_say(bare: Bare) -> None:
    """The scale subresource, the field `suspend`, the annotation; a status about the spec before is told as such."""
    bare.apply("steered")
    bare.write_status("steered")

    bare.plugin("scale", "steered", "5")
    bare.plugin("suspend", "steered")
    suspended = bare.api.run("steered")
    bare.plugin("resume", "steered")
    bare.plugin("retry", "steered", "--only-wake")
    resumed = bare.api.run("steered")

    assert suspended is not None
    assert resumed is not None
    assert suspended["spec"]["workers"]["count"] == 5
    assert (suspended["spec"]["suspend"], resumed["spec"]["suspend"]) == (True, False)
    assert resumed["metadata"]["annotations"][ANNOTATION_RETRY]
    assert "has not been looked at yet" in bare.plugin("status", "steered")


def test_the_servers_words_for_what_is_missing(bare: Bare) -> None:
    """A run that is not there, a number that is none, a store that asks for credentials."""
    bare.apply("words")

    assert f"no InferenceRun 'nobody' in namespace '{NAMESPACE}'" in bare.plugin("status", "nobody", exit_code=64)
    assert "words" in bare.plugin("scale", "words", "7")
    assert "your own credentials" in bare.plugin("shards", "words", exit_code=69)


def test_names_of_runs_are_completed(bare: Bare) -> None:
    """By the program that kubectl asks."""
    bare.apply("complete-me")
    done = subprocess.run(
        [sys.executable, "-c", "from cli.kubectl.complete import main; main()", "status", "complete-"],
        env={**os.environ, "KUBECONFIG": str(bare.kubeconfig)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.splitlines() == ["complete-me", ":4"]
