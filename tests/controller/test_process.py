"""The controller as a process: how it ends when it cannot begin."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import yaml

KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "here",
    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    "clusters": [{"name": "here", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "me", "user": {"token": "t"}}],
}


def test_a_health_port_that_is_taken_is_its_last_word(tmp_path: Path) -> None:
    """The kubelet keeps the last line, and doctor shows it: it names the setting and its remedy."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(KUBECONFIG))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        settings = {
            "KUBECONFIG": str(kubeconfig),
            "INFERENCERUN_CONTROLLER_WORKER_IMAGE": "worker:1",
            "INFERENCERUN_CONTROLLER_LEASE_NAMESPACE": "op",
            "INFERENCERUN_CONTROLLER_HEALTH_ADDRESS": "127.0.0.1",
            "INFERENCERUN_CONTROLLER_HEALTH_PORT": port,
        }
        done = subprocess.run(
            [sys.executable, "-m", "controller"],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    last = json.loads(done.stderr.splitlines()[-1])

    assert done.returncode == 1, done.stderr
    assert last["message"] == "cannot start"
    assert last["detail"].startswith(f"INFERENCERUN_CONTROLLER_HEALTH_PORT {port}: ")
    assert last["detail"].endswith("choose a free one (controller.healthPort of the chart)")
