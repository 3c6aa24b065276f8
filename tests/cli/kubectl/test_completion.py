"""Tests of what is completed: commands, options, and names of runs."""

from __future__ import annotations

import os
import subprocess
import sys

from click.testing import CliRunner

from cli.kubectl.complete import completed
from cli.kubectl.main import main
from tests.cli.kubectl.cluster import FakeCluster
from tests.cli.kubectl.test_commands import STATUS
from tests.controller.api_server import refusal


def test_kubectl_is_given_commands_with_their_meaning() -> None:
    """One a line, and last that files are not meant."""
    assert completed(["su"]) == ["suspend\tDrain all workers; what is done stays done.", ":4"]


def test_names_of_runs_are_completed(cluster: FakeCluster) -> None:
    """Those that begin so, with their phase, in the namespace that the words before name."""
    for name in ("swissprot", "swift", "uniref"):
        cluster.apply(name, **STATUS)
    where = ["--kubeconfig", str(cluster.kubeconfig)]

    here, elsewhere = completed(["status", *where, "sw"]), completed(["status", "-n", "other", *where, "sw"])

    assert here == ["swift\tRunning", "swissprot\tRunning", ":4"]
    assert elsewhere == [":4"]


def test_options_are_completed() -> None:
    """Without a cluster."""
    assert [line.split("\t")[0] for line in completed(["scale", "--na"])] == ["--namespace", ":4"]


def test_a_cluster_that_cannot_be_asked_completes_nothing(cluster: FakeCluster) -> None:
    """A prompt shows no errors."""
    cluster.server.fault = lambda _method, _path: refusal(403, "Forbidden", "no")

    assert completed(["status", "--kubeconfig", str(cluster.kubeconfig), ""])[-1] == ":4"
    assert completed(["status", "--kubeconfig", "nowhere", ""])[-1] == ":4"


def test_bash_calls_the_program_back(cluster: FakeCluster) -> None:
    """The variable in the printed script is the one that the program answers to."""
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    environment = {
        **os.environ,
        "KUBECONFIG": str(cluster.kubeconfig),
        "_KUBECTL_INFERENCERUN_COMPLETE": "bash_complete",
        "COMP_WORDS": "kubectl-inferencerun status sw",
        "COMP_CWORD": "2",
    }
    cluster.apply(**STATUS)
    code = "from cli.kubectl.main import main; main(prog_name='kubectl-inferencerun')"

    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert "_KUBECTL_INFERENCERUN_COMPLETE=bash_complete" in script
    assert result.stdout.split() == ["plain,swissprot"]
