"""The images as the kubelet runs them: in the worker's own pod, locked down, each says what it can do and what it holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contract.names import CONTAINER_WORKER
from controller.pod_template import build_pod
from tests import make
from tests.cluster.images import image_name
from tests.e2e.operator import NAMESPACE, Api, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PROGRAM = """
import importlib.util, json, os, pathlib, pwd, shutil, socket, sys, tempfile

def is_writable(folder):
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False

def is_compiled(name):
    spec = importlib.util.find_spec(name)
    return spec is not None and os.path.exists(spec.cached)

names = ("torch", "kopf", "pip", "worker", "controller", "contract", "boto3")
pathlib.Path("/dev/termination-log").write_text(json.dumps({
    "uid": os.getuid(),
    "user": pwd.getpwuid(os.getuid()).pw_name,
    "writable": [folder for folder in ("/", "/app", "/opt/venv", "/tmp", "/cache", "/dev/shm") if is_writable(folder)],
    "home": os.path.expanduser("~"),
    "has": [name for name in names if importlib.util.find_spec(name)],
    "compilers": [name for name in ("cc", "gcc", "make", "pip") if shutil.which(name)],
    "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")],
    "settings": os.environ["INFERENCERUN_SETTINGS"],
    "threads": os.environ["OMP_NUM_THREADS"],
    "compiled": [name for name in names if is_compiled(name)],
    "token": os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount"),
}))
"""
SETTINGS = '{"pattern": "$(HOME) $$ $x"}'


def said_by(api: Api, target: str) -> dict[str, Any]:
    """What the program says in a worker's pod that runs the image of this target."""
    name = f"image-{target}"
    container = {
        "name": CONTAINER_WORKER,
        "command": ["python", "-c", PROGRAM],
        "resources": {"requests": None, "limits": {"cpu": "1500m"}},
    }
    pod = build_pod(
        make.run({"workers": {"gpusPerWorker": 0, "template": {"spec": {"containers": [container]}}}}),
        name=name,
        namespace=NAMESPACE,
        slot=0,
        attempt=0,
        resource_uid="00000000-0000-0000-0000-000000000000",
        generation=1,
        settings_json=SETTINGS,
        image=image_name(target),
        image_pull_policy="Never",
    )
    # An owner that does not exist would have the pod collected.
    del pod["metadata"]["ownerReferences"]
    api.core.create_namespaced_pod(NAMESPACE, pod)
    try:
        ended = wait_for(
            lambda: api.core.read_namespaced_pod(name, NAMESPACE).status.phase in {"Succeeded", "Failed"},
            f"the pod of image {target} to end",
            why=lambda: api.core.read_namespaced_pod(name, NAMESPACE).status,
        )
        (status,) = api.core.read_namespaced_pod(name, NAMESPACE).status.container_statuses
    finally:
        api.core.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=0)
    assert ended
    assert status.state.terminated.exit_code == 0, status.state.terminated.message
    found: dict[str, Any] = json.loads(status.state.terminated.message)
    return found


@pytest.mark.parametrize(
    ("target", "present"),
    [
        ("controller", ["kopf", "worker", "controller", "contract", "boto3"]),
        ("worker", ["torch", "worker", "controller", "contract", "boto3"]),
    ],
)
def test_an_image_holds_what_it_needs_and_may_do_no_more(api: Api, target: str, present: list[str]) -> None:
    """Not root, nothing writable but what is mounted, no pip, no compiler, and only its own dependencies."""
    found = said_by(api, target)

    assert (found["uid"], found["user"], found["home"]) == (65532, "inferencerun", "/tmp")
    assert found["writable"] == ["/tmp", "/cache", "/dev/shm"]
    assert found["has"] == present
    assert found["compilers"] == []
    assert found["capabilities"] == ["0" * 16]
    assert found["settings"] == SETTINGS
    assert found["threads"] == "2"
    assert found["compiled"] == present
    assert found["token"] is False
