"""A fault proxy: stands before an S3 server on loopback and loses, delays or refuses chosen requests, over real sockets.

    with FaultProxy(server.port) as proxy:
        proxy.inject(Fault.DROP_REPLY, method="PUT", path="shards/00001.json")
        store = S3Store(bucket, endpoint_url=proxy.endpoint_url, read_timeout_s=0.3)

It also counts the calls and can run a hook just before and just after each of them, so that a test can kill a process
at store call k.
"""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

LOOPBACK = "127.0.0.1"


class Fault(Enum):
    """What happens to a request."""

    DROP_REPLY = auto()
    """Applied; the connection is closed without a reply."""
    ERROR_AFTER = auto()
    """Applied; the reply is 500."""
    TIMEOUT_AFTER = auto()
    """Applied; there is no reply until the client gives up."""
    DROP_BEFORE = auto()
    """Not applied; the connection is closed without a reply."""
    LATE = auto()
    """The connection is closed without a reply; applied just before the next request of the same method and path."""
    CONFLICT = auto()
    """Not applied; 409 ConditionalRequestConflict."""
    PRECONDITION = auto()
    """Not applied; 412, whatever the object's ETag is."""
    SLOW_DOWN = auto()
    """Not applied; 503 SlowDown."""
    DENIED = auto()
    """Not applied; 403 AccessDenied."""
    CORRUPT = auto()
    """A byte of the request's body is changed on the way."""
    CUT_REPLY = auto()
    """Applied; the connection is closed in the middle of the reply's body."""


@dataclass(frozen=True)
class Refusal:
    """Not applied; an error reply of one's own making."""

    status: int
    code: str
    headers: tuple[tuple[str, str], ...] = ()


_REFUSALS = {
    Fault.CONFLICT: Refusal(409, "ConditionalRequestConflict"),
    Fault.PRECONDITION: Refusal(412, "PreconditionFailed"),
    Fault.SLOW_DOWN: Refusal(503, "SlowDown"),
    Fault.DENIED: Refusal(403, "AccessDenied"),
}


@dataclass(frozen=True)
class Call:
    """A request, numbered from 1 in the order of arrival."""

    number: int
    method: str
    path: str
    """Bucket and key, without the query."""


@dataclass
class _Injection:
    fault: Fault | Refusal
    method: str
    path: str
    skip: int
    times: int


@dataclass(frozen=True)
class _Request:
    method: str
    target: str
    body: bytes
    headers: dict[str, str]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away, or are killed, are what this is for; anything else is a mistake to be seen."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class FaultProxy:
    """A context manager; listens on a port of its own on loopback."""

    def __init__(
        self,
        upstream_port: int,
        *,
        before: Callable[[Call], None] | None = None,
        after: Callable[[Call], None] | None = None,
    ) -> None:
        """Prepare.

        Args:
            upstream_port: the real server's.
            before: runs when a request has arrived whole and nothing is applied yet.
            after: runs when the server has applied it and no byte of the reply is sent yet.
        """
        self._upstream_port = upstream_port
        self._before = before
        self._after = after
        self._lock = threading.Lock()
        self._injections: list[_Injection] = []
        self._late: list[_Request] = []
        self.calls: list[Call] = []
        self._server = _Server((LOOPBACK, 0), self._handler())
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True, name="fault-proxy"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint_url(self) -> str:
        """What to give a client."""
        return f"http://{LOOPBACK}:{self._server.server_port}"

    @property
    def num_calls(self) -> int:
        """Requests that arrived, whatever became of them."""
        with self._lock:
            return len(self.calls)

    def count(self, method: str, path: str = "") -> int:
        """How many requests of this method had `path` in their path."""
        with self._lock:
            return sum(call.method == method and path in call.path for call in self.calls)

    def inject(
        self, fault: Fault | Refusal, *, method: str = "PUT", path: str = "", nth: int = 1, times: int = 1
    ) -> None:
        """Let `fault` happen to the nth to (nth + times - 1)th request from now on of `method` with `path` in its path."""
        with self._lock:
            self._injections.append(_Injection(fault, method, path, nth - 1, times))

    def _arrived(self, method: str, path: str) -> tuple[Call, Fault | Refusal | None]:
        with self._lock:
            call = Call(len(self.calls) + 1, method, path)
            self.calls.append(call)
            for injection in self._injections:
                if injection.method == method and injection.path in path and injection.times:
                    if injection.skip:
                        injection.skip -= 1
                        continue
                    injection.times -= 1
                    return call, injection.fault
            return call, None

    def _forward(self, request: _Request) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(LOOPBACK, self._upstream_port, timeout=60)
        try:
            connection.request(request.method, request.target, request.body, request.headers)
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()

    def _take_late(self, request: _Request) -> list[_Request]:
        with self._lock:
            due = [item for item in self._late if (item.method, item.target) == (request.method, request.target)]
            self._late = [item for item in self._late if item not in due]
        return due

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        skipped = {"expect", "connection", "content-length"}
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in skipped}
        request = _Request(handler.command, handler.path, body, headers)
        call, fault = self._arrived(handler.command, unquote(handler.path.partition("?")[0]))
        if self._before:
            self._before(call)
        refusal = fault if isinstance(fault, Refusal) else _REFUSALS.get(fault) if fault else None
        if refusal:
            xml = f"<Error><Code>{refusal.code}</Code><Message>injected</Message></Error>"
            _reply(handler, refusal.status, list(refusal.headers), xml.encode())
            return
        if fault in {Fault.DROP_BEFORE, Fault.LATE}:
            if fault is Fault.LATE:
                with self._lock:
                    self._late.append(request)
            handler.close_connection = True
            return
        if fault is Fault.CORRUPT:
            request = _Request(request.method, request.target, bytes([body[0] ^ 1]) + body[1:], headers)
        for late in self._take_late(request):
            self._forward(late)
        status, reply_headers, reply_body = self._forward(request)
        if self._after:
            self._after(call)
        if fault is Fault.DROP_REPLY:
            handler.close_connection = True
        elif fault is Fault.TIMEOUT_AFTER:
            handler.connection.recv(1)  # returns when the client closes its end
            handler.close_connection = True
        elif fault is Fault.ERROR_AFTER:
            _reply(handler, 500, [], b"<Error><Code>InternalError</Code><Message>injected</Message></Error>")
        elif fault is Fault.CUT_REPLY:
            _reply(handler, status, reply_headers, reply_body, num_sent=len(reply_body) // 2)
            handler.close_connection = True
        else:
            _reply(handler, status, reply_headers, reply_body)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keep-alive, and 100 Continue for the bodies boto3 sends
            disable_nagle_algorithm = True

            def do_PUT(self) -> None:
                proxy._serve(self)

            do_GET = do_HEAD = do_DELETE = do_POST = do_PUT  # noqa: N815  (http.server's names)

            def log_message(self, *_arguments: Any) -> None:
                """Quiet."""

        return Handler


def _reply(
    handler: BaseHTTPRequestHandler,
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
    *,
    num_sent: int | None = None,
) -> None:
    handler.send_response(status)
    is_length_told = handler.command == "HEAD"
    for name, value in headers:
        if name.lower() in {"connection", "transfer-encoding"} or (
            name.lower() == "content-length" and not is_length_told
        ):
            continue
        handler.send_header(name, value)
    if not is_length_told and status != 204:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if not is_length_told:
        handler.wfile.write(body[:num_sent])
