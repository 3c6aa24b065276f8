"""The controller as users install it, by its chart; and a kubeconfig of its service account, for controllers beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python
import kubernetes
import yaml

from tests.chart.rendering import CHART, NAMESPACE, RELEASE
from tests.cluster.images import image_name
from tests.e2e.operator import client


def install(kubeconfig: Path, store: dict[str, str], *, node: str, health_port: int) -> None:
    """Install the chart, with the rights that it gives and no others.

    Args:
        kubeconfig: of the administrator.
        store: environment that leads to the store, on loopback.
        node: where the controller runs; tests may do without the others.
        health_port: a free one: the nodes share the machine's network.
    """
    address = {"name": "INFERENCERUN_CONTROLLER_HEALTH_ADDRESS"}
    values = {
        "crds": {"install": False},  # tests of the definition have put it there
        "controller": {
            "image": image_values("controller"),
            "replicas": 1,
            "hostNetwork": True,
            "healthPort": health_port,
            "nodeSelector": {"kubernetes.io/hostname": node},
            "extraEnv": [
                *({"name": name, "value": value} for name, value in store.items()),
                {**address, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
            "settings": {
                "pollSeconds": 1,
                "leaseDurationSeconds": 4,
                "leaseRenewDeadlineSeconds": 3,
                "leaseRetrySeconds": 0.5,
            },
        },
        "worker": {"image": image_values("worker")},
    }
    with helm_python.Config(kubeconfig_path=str(kubeconfig), namespace=NAMESPACE) as helm:
        helm.install(CHART, RELEASE, values, create_namespace=True)


def uninstall(kubeconfig: Path) -> None:
    """Undo `install`; does nothing where that has not been done."""
    with helm_python.Config(kubeconfig_path=str(kubeconfig), namespace=NAMESPACE) as helm:
        helm.uninstall(RELEASE, ignore_not_found=True)


def controller_kubeconfig(admin: Path, target: Path) -> Path:
    """Write `target`, which logs in as the installed controller."""
    core = kubernetes.client.CoreV1Api(client(admin))
    audience: dict[str, Any] = {"spec": {"audiences": None, "expirationSeconds": 7200}}
    token = core.create_namespaced_service_account_token(RELEASE, NAMESPACE, audience).status.token
    config = yaml.safe_load(admin.read_text())
    for user in config["users"]:
        user["user"] = {"token": token}
    target.touch(mode=0o600)
    target.write_text(yaml.safe_dump(config))
    return target


def image_values(target: str) -> dict[str, str]:
    """Values of the chart for one of the project's images, which the nodes have."""
    repository, _, tag = image_name(target).rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "Never"}
