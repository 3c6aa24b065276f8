"""A link so slow that a checkpoint takes longer than any single wait may: it arrives all the same, at the first attempt."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from typing import Any

import pytest

from contract.store.errors import OutcomeUnknown
from contract.store.gcs import GcsStore
from contract.store.s3 import S3Store
from tests.servers import LOOPBACK

TIMEOUT_S = 0.5
BODY = bytes(range(256)) * (48 << 10)
"""12 MiB: far more than the kernel's buffers of a connection hold."""
PIECE_BYTES = 64 << 10
PAUSE_S = 0.01
"""After each piece: about 6 MB/s, so the body takes four times the timeout, and a piece of it a twentieth."""


class SlowServer(HTTPServer):
    """Takes what is put at PIECE_BYTES per PAUSE_S, and says yes."""

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), SlowHandler)
        self.digests: list[str] = []
        """MD5 of each body that arrived whole, in base64."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may give up."""


class SlowHandler(BaseHTTPRequestHandler):
    """One connection."""

    server: SlowServer
    protocol_version = "HTTP/1.1"
    rbufsize = 0

    def do_PUT(self) -> None:
        """Store nothing but the digest."""
        pace = threading.Event()
        digest, missing = hashlib.md5(usedforsecurity=False), int(self.headers["Content-Length"])
        while missing and (piece := self.rfile.read(min(PIECE_BYTES, missing))):
            digest.update(piece)
            missing -= len(piece)
            pace.wait(PAUSE_S)
        self.close_connection = True
        if missing:
            return
        self.server.digests.append(base64.b64encode(digest.digest()).decode())
        self.send_response(200)
        for name, value in (("ETag", '"e"'), ("x-goog-generation", "7"), ("Content-Length", "0")):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        """Quiet."""


@contextmanager
def slow_server() -> Iterator[SlowServer]:
    """Listening."""
    server = SlowServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(params=[S3Store, GcsStore], ids=["s3", "gs"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[S3Store | GcsStore]:
    """Each store, with what it asks the environment for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"{LOOPBACK}:9")  # no credentials; the endpoint is given
    found: type[S3Store | GcsStore] = request.param
    return found


def test_a_checkpoint_that_takes_longer_than_any_timeout_arrives(kind: type[S3Store | GcsStore]) -> None:
    """Timeouts are for each wait, not for the whole put: while bytes get through, it goes on."""
    with slow_server() as server:
        endpoint_url = f"http://{LOOPBACK}:{server.server_port}"
        store = kind("bucket", endpoint_url=endpoint_url, connect_timeout_s=TIMEOUT_S, read_timeout_s=10 * TIMEOUT_S)

        store.put_create("data.pt", BytesIO(BODY))

        assert server.digests == [base64.b64encode(hashlib.md5(BODY, usedforsecurity=False).digest()).decode()]


def test_the_buffer_of_a_put_that_failed_can_be_filled_again(kind: type[S3Store | GcsStore]) -> None:
    """Whatever becomes of a put, and while its error is still looked at, nothing holds on to the writer's buffer."""
    buffer = BytesIO(BODY)
    store = kind("bucket", endpoint_url=f"http://{LOOPBACK}:9", connect_timeout_s=TIMEOUT_S)

    with pytest.raises(OutcomeUnknown) as caught:
        store.put_create("data.pt", buffer)

    assert buffer.truncate(0) == 0
    assert caught.value.key == "data.pt"
