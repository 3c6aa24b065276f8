"""Object stores on loopback, as fixtures: started when first asked for, stopped at the end of the session.

    s3_server        ministack over HTTP        compare-and-swap is free of races: its handlers share one event loop
    s3_tls_server    ministack over HTTPS       with a certificate of our own
    moto_server      moto behind one lock       moto compares and writes in two steps; the lock makes it honest
    racy_server      moto as it is              known to let two writers win; shows that a test can fail
    ignoring_server  moto without conditions    answers 200 to every conditional put, as several real stores do
    gcs_server       tests.gcs_server           Google Cloud Storage; compares and writes under one lock

`s3_uri` is a fresh bucket on `s3_server`, `gcs_uri` one on `gcs_server`, with the environment set so that `open_store`
finds it. Spawned processes inherit it.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import ipaddress
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract.store.s3 import S3Store
from tests.gcs_server import FakeGcs, serving

LOOPBACK = "127.0.0.1"
WsgiApp = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]

_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
_FOREIGN = ("AWS_", "GOOGLE_", "CLOUDSDK_", "GCE_", "STORAGE_EMULATOR_HOST")
_bucket_numbers = itertools.count(1)


@dataclass(frozen=True)
class S3Server:
    """Where a server listens and what a client's environment needs."""

    endpoint_url: str
    certificate_path: Path | None = None
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        tls = {"AWS_CA_BUNDLE": str(self.certificate_path)} if self.certificate_path else {}
        object.__setattr__(self, "environment", {**_CREDENTIALS, **tls, "AWS_ENDPOINT_URL_S3": self.endpoint_url})

    @property
    def port(self) -> int:
        """TCP port on loopback."""
        return int(self.endpoint_url.rpartition(":")[2])

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make every client of this test, and of the processes it starts, talk to this server."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def new_bucket(self) -> str:
        """Name of a fresh, empty bucket. The environment must be set (`use`)."""
        bucket = f"bucket-{next(_bucket_numbers)}"
        S3Store(bucket, endpoint_url=self.endpoint_url)._clients.retrying.create_bucket(Bucket=bucket)
        return bucket


@pytest.fixture(scope="session", autouse=True)
def _only_loopback() -> Iterator[None]:
    """No test of this process talks to anything but loopback and Unix sockets; no setting of a cloud account leaks in."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def checked(address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and not _is_loopback(host):
            raise AssertionError(f"a test tried to reach {address!r}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        checked(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        checked(address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        checked((host.decode() if isinstance(host, bytes) else host,))
        return getaddrinfo(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("CLOUDSDK_CONFIG", os.devnull)
        patch.setenv("NO_GCE_CHECK", "true")
        yield


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in {"", "localhost"}


@contextmanager
def ministack(directory: Path) -> Iterator[S3Server]:
    """Ministack over HTTP, for programs that are no tests; its files lie in `directory`."""
    with _ministack(directory, {}) as port:
        yield S3Server(f"http://{LOOPBACK}:{port}")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Ministack over HTTP."""
    with _ministack(tmp_path_factory.mktemp("ministack"), {}) as port:
        yield S3Server(f"http://{LOOPBACK}:{port}")


@pytest.fixture(scope="session")
def s3_tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Ministack over HTTPS."""
    directory = tmp_path_factory.mktemp("ministack-tls")
    certificate, key = _self_signed(directory)
    settings = {"USE_SSL": "1", "MINISTACK_SSL_CERT": str(certificate), "MINISTACK_SSL_KEY": str(key)}
    with _ministack(directory, settings) as port:
        yield S3Server(f"https://{LOOPBACK}:{port}", certificate)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """Moto behind one lock, so that compare and write are one step."""
    with _moto(locked) as endpoint_url:
        yield S3Server(endpoint_url)


@pytest.fixture(scope="session")
def racy_server() -> Iterator[S3Server]:
    """Moto as it is."""
    with _moto(lambda app: app) as endpoint_url:
        yield S3Server(endpoint_url)


@pytest.fixture(scope="session")
def ignoring_server() -> Iterator[S3Server]:
    """Moto that never sees a condition."""
    with _moto(lambda app: without_conditions(locked(app))) as endpoint_url:
        yield S3Server(endpoint_url)


@pytest.fixture
def s3_uri(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a prefix in a fresh bucket, with the environment set."""
    s3_server.use(monkeypatch)
    return f"s3://{s3_server.new_bucket()}/runs/one"


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[FakeGcs]:
    """Google Cloud Storage as an emulator: without credentials."""
    server = FakeGcs()
    with serving(server):
        yield server


@pytest.fixture
def gcs_uri(gcs_server: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a prefix in a fresh bucket, with the environment set."""
    gcs_server.use(monkeypatch)
    return f"gs://{gcs_server.new_bucket()}/runs/one"


@pytest.fixture(params=["s3_uri", "gcs_uri"])
def bucket_uri(request: pytest.FixtureRequest) -> str:
    """URI of a prefix in a fresh bucket of each kind, with the environment set."""
    return str(request.getfixturevalue(request.param))


def locked(app: WsgiApp) -> WsgiApp:
    """One request at a time, reads too: moto disposes the old body while a read still seeks it."""
    lock = threading.Lock()

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with lock:
            body = app(environ, start_response)
            try:
                return [b"".join(body)]
            finally:
                if hasattr(body, "close"):
                    body.close()

    return serve


def without_conditions(app: WsgiApp) -> WsgiApp:
    """Drop the conditions of every request, as a store does that does not know them."""

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        kept = {name: value for name, value in environ.items() if name not in {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"}}
        return app(kept, start_response)

    return serve


@contextmanager
def _moto(wrap: Callable[[WsgiApp], WsgiApp]) -> Iterator[str]:
    from moto.moto_server.werkzeug_app import (  # noqa: PLC0415  (1 s to import)
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server  # noqa: PLC0415

    app = wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server(LOOPBACK, 0, app, threaded=True, request_handler=MotoRequestHandler)
    server.daemon_threads = True  # type: ignore[attr-defined]
    server.log = lambda *_arguments, **_options: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _ministack(directory: Path, settings: dict[str, str]) -> Iterator[int]:
    if importlib.util.find_spec("ministack") is None:
        raise RuntimeError("ministack is not installed: install the dependency group 'test'")
    port = free_port()
    environment = {
        **os.environ,
        "BIND_HOST": LOOPBACK,  # its default is every interface
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3",
        "IOT_MTLS_ENABLED": "0",
        "LOG_LEVEL": "ERROR",
        "TMPDIR": str(directory),
        **settings,
    }
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=environment, cwd=directory, stdout=output, stderr=output
        )
    try:
        _wait_until_it_listens(process, port, log)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A TCP port on loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex((LOOPBACK, port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"ministack did not start on port {port}:\n{log.read_text()[-2000:]}")


def _self_signed(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, LOOPBACK)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = directory / "certificate.pem", directory / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path
