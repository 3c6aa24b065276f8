"""etcd, the API server, the controller manager, the scheduler: their commands and their start."""

from __future__ import annotations

import base64
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from tests.cluster.binaries import Binaries
from tests.cluster.layout import LOOPBACK, Layout, kubeconfig_text
from tests.cluster.processes import Daemon, start, wait_until
from tests.cluster.programs import run

APISERVER = "kube-apiserver"
_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, userGroups: ["system:serviceaccounts"]}
  - {level: None}
"""


def make_certificates(layout: Layout) -> None:
    """What the API server needs and does not make itself."""
    layout.certificates.mkdir()
    run("openssl", "genrsa", "-out", layout.certificates / "service-accounts.key", "2048")
    # How the API server shows itself to kubelets (logs, exec). Its own certificate authority: the kubelets trust it.
    run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=kube-apiserver"),
        *("-keyout", layout.certificates / "kubelet-client.key", "-out", layout.certificates / "kubelet-client.crt"),
    )
    tokens = layout.certificates / "tokens.csv"
    tokens.touch(mode=0o600)
    tokens.write_text(f'{layout.token},admin,admin,"system:masters"\n', encoding="ascii")


def start_etcd(layout: Layout, binaries: Binaries) -> Daemon:
    """The database. Without fsync: a test cluster does not outlive a power failure."""
    client = f"http://{LOOPBACK}:{layout.ports.etcd_client}"
    peer = f"http://{LOOPBACK}:{layout.ports.etcd_peer}"
    command: list[str | Path] = [
        binaries.etcd,
        f"--data-dir={layout.directory}/etcd",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
    ]
    return start("etcd", command, layout.logs / "etcd.log")


def start_apiserver(layout: Layout, binaries: Binaries) -> Daemon:
    """The API server; `wait_ready` tells when it answers."""
    certificates = layout.certificates
    policy = certificates / "audit.yaml"
    policy.write_text(_AUDIT_POLICY, encoding="ascii")
    command: list[str | Path] = [
        binaries.program(APISERVER),
        f"--audit-policy-file={policy}",
        f"--audit-log-path={layout.audit_log}",
        f"--etcd-servers=http://{LOOPBACK}:{layout.ports.etcd_client}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={layout.ports.apiserver}",
        # Only an address outside loopback may be the Service's endpoint; nothing listens there.
        f"--advertise-address={layout.service_address}",
        f"--cert-dir={certificates}",
        f"--token-auth-file={certificates}/tokens.csv",
        "--authorization-mode=RBAC",
        # Off by default, on in OpenShift: whoever makes a pod that holds up its owner must be allowed to.
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={certificates}/service-accounts.key",
        f"--service-account-signing-key-file={certificates}/service-accounts.key",
        f"--service-cluster-ip-range={layout.service_range}",
        f"--kubelet-client-certificate={certificates}/kubelet-client.crt",
        f"--kubelet-client-key={certificates}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",  # nobody resolves the nodes' names
        "--allow-privileged=true",
        # Default 300 s: tests of lost nodes would take as long.
        "--default-not-ready-toleration-seconds=5",
        "--default-unreachable-toleration-seconds=5",
    ]
    return start(APISERVER, command, layout.logs / "kube-apiserver.log")


def start_service_forwarder(layout: Layout) -> Daemon:
    """Port 443 of the Service address, passed on to the API server: what kube-proxy would do."""
    command = [
        "/usr/bin/socat",
        f"TCP-LISTEN:443,bind={layout.service_address},reuseaddr,fork",
        f"TCP:{LOOPBACK}:{layout.ports.apiserver}",
    ]
    return start("socat", command, layout.logs / "socat.log")


def start_controller_manager(layout: Layout, binaries: Binaries) -> Daemon:
    """The controllers, with nodes given up after 10 s instead of 40."""
    command: list[str | Path] = [
        binaries.program("kube-controller-manager"),
        f"--kubeconfig={layout.kubeconfig}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={layout.ports.controller_manager}",
        "--leader-elect=false",
        f"--service-account-private-key-file={layout.certificates}/service-accounts.key",
        f"--root-ca-file={layout.apiserver_certificate}",
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=10s",
        *_no_insecure_port(binaries),
    ]
    return start("kube-controller-manager", command, layout.logs / "kube-controller-manager.log")


def start_scheduler(layout: Layout, binaries: Binaries) -> Daemon:
    """The scheduler."""
    command: list[str | Path] = [
        binaries.program("kube-scheduler"),
        f"--kubeconfig={layout.kubeconfig}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={layout.ports.scheduler}",
        "--leader-elect=false",
        *_no_insecure_port(binaries),
    ]
    return start("kube-scheduler", command, layout.logs / "kube-scheduler.log")


def wait_ready(layout: Layout, watched: list[Daemon]) -> None:
    """Wait until the API server says that it is ready."""
    wait_until(lambda: is_ready(layout), "the API server to be ready", 120, watched=watched)


def write_kubeconfig(layout: Layout) -> None:
    """The administrator's kubeconfig, readable by this user only."""
    certificate = base64.b64encode(layout.apiserver_certificate.read_bytes()).decode("ascii")
    layout.kubeconfig.touch(mode=0o600)
    layout.kubeconfig.write_text(kubeconfig_text(layout.apiserver_url, certificate, layout.token), encoding="ascii")


def is_ready(layout: Layout) -> bool:
    """Whether `/readyz` answers 200."""
    context = _client_context(layout.apiserver_certificate)
    request = urllib.request.Request(
        f"{layout.apiserver_url}/readyz", headers={"Authorization": f"Bearer {layout.token}"}
    )
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _client_context(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def _no_insecure_port(binaries: Binaries) -> list[str]:
    """Releases before 1.23 also listen on a fixed plain port unless told not to; later ones do not know the flag."""
    return ["--port=0"] if binaries.minor < 23 else []
