"""A kubeconfig of the controller's own service account, with the rights that deploy/install.yaml gives and no others."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import kubernetes
import yaml
from kubernetes.client.exceptions import ApiException

from tests.e2e.operator import client

NAMESPACE = "inferencerun"
ACCOUNT = "inferencerun-operator"


def controller_kubeconfig(admin: Path, manifest: Path, target: Path) -> Path:
    """Create what `manifest` describes and write `target`, which logs in as the controller."""
    api = client(admin)
    core, rbac = kubernetes.client.CoreV1Api(api), kubernetes.client.RbacAuthorizationV1Api(api)
    _ensure(partial(core.create_namespace, {"metadata": {"name": NAMESPACE}}))
    for body in yaml.safe_load_all(manifest.read_text()):
        namespace = body["metadata"].get("namespace")
        match body["kind"]:
            case "ServiceAccount":
                _ensure(partial(core.create_namespaced_service_account, namespace, body))
            case "ClusterRole":
                _ensure(partial(rbac.create_cluster_role, body))
                rbac.replace_cluster_role(body["metadata"]["name"], body)
            case "ClusterRoleBinding":
                _ensure(partial(rbac.create_cluster_role_binding, body))
            case "Role":
                _ensure(partial(rbac.create_namespaced_role, namespace, body))
                rbac.replace_namespaced_role(body["metadata"]["name"], namespace, body)
            case "RoleBinding":
                _ensure(partial(rbac.create_namespaced_role_binding, namespace, body))
    audience: dict[str, Any] = {"spec": {"audiences": None, "expirationSeconds": 7200}}
    token = core.create_namespaced_service_account_token(ACCOUNT, NAMESPACE, audience).status.token
    config = yaml.safe_load(admin.read_text())
    for user in config["users"]:
        user["user"] = {"token": token}
    target.write_text(yaml.safe_dump(config))
    target.chmod(0o600)
    return target


def _ensure(create: Any) -> None:
    """Create it unless it is there."""
    try:
        create()
    except ApiException as error:
        if error.status != 409:
            raise
