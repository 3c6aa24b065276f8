"""Google Cloud Storage on loopback, as far as this project uses it, written from its public API reference.

    PUT, GET, HEAD, DELETE /bucket/key    the XML API: x-goog-if-generation-match, Content-MD5, Range, x-goog-hash
    GET /storage/v1/b/bucket/o            the JSON API's listing: prefix, delimiter, maxResults, pageToken
    POST /storage/v1/b                    a new bucket

Compare and write are one step under one lock, so a race has one winner. A generation is a time in microseconds that is
never given twice. `FakeMetadata` is the server from which a pod gets its token without a key.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LOOPBACK = "127.0.0.1"
PAGE_SIZE = 1000
_bucket_numbers = itertools.count(1)


@dataclass(frozen=True)
class Object:
    """One generation of an object."""

    body: bytes
    generation: int
    headers: dict[str, str]

    @property
    def created_at(self) -> str:
        """As the JSON API writes it."""
        return datetime.fromtimestamp(self.generation / 1e6, UTC).isoformat(timespec="milliseconds")

    @property
    def told(self) -> dict[str, str]:
        """Headers of every reply about it."""
        return {
            "etag": f'"{md5(self.body)}"',
            "last-modified": formatdate(self.generation / 1e6, usegmt=True),
            "x-goog-generation": str(self.generation),
            "x-goog-hash": f"md5={md5(self.body)}",
        }


@dataclass
class FakeGcs:
    """The buckets, and who may come in."""

    honours_conditions: bool = True
    tokens: set[str] | None = None
    """None = no credentials are asked for, as of an emulator."""
    denied: bool = False
    """Whether a valid token may do nothing at all."""
    buckets: dict[str, dict[str, Object]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, target and headers (names in lower case) of each, in order of arrival."""
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    last_generation: int = 0

    @property
    def endpoint_url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}"

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make every client of this test, and of the processes it starts, talk to this server."""
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", self.endpoint_url)

    def new_bucket(self) -> str:
        """Name of a fresh, empty bucket."""
        bucket = f"gs-bucket-{next(_bucket_numbers)}"
        self.buckets[bucket] = {}
        return bucket

    def new_generation(self) -> int:
        """The time, or a little later."""
        self.last_generation = max(self.last_generation + 1, time.time_ns() // 1000)
        return self.last_generation


@dataclass(frozen=True)
class Reply:
    """What goes back."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def answer(store: FakeGcs, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
    """One request, whole, under the store's lock."""
    url = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
    is_json = url.path.startswith("/storage/v1/")
    refuse = json_error if is_json else xml_error
    if store.tokens is not None:
        if headers.get("authorization", "").removeprefix("Bearer ") not in store.tokens:
            return refuse(401, "AuthenticationRequired", "Invalid credentials.")
        if store.denied:
            return refuse(403, "AccessDenied", "The caller does not have storage.objects access.")
    if is_json:
        return answer_json(store, method, url.path.removeprefix("/storage/v1/"), query, body)
    bucket, _, key = unquote(url.path[1:]).partition("/")
    if bucket not in store.buckets:
        return refuse(404, "NoSuchBucket", "The specified bucket does not exist.")
    return answer_xml(store, method, store.buckets[bucket], key, headers, body)


def answer_json(store: FakeGcs, method: str, path: str, query: dict[str, str], body: bytes) -> Reply:
    """Buckets and listings."""
    if method == "POST" and path == "b":
        store.buckets.setdefault(json.loads(body)["name"], {})
        return Reply(200, b"{}")
    match = re.fullmatch(r"b/([^/]+)/o", path)
    if method != "GET" or match is None:
        return json_error(404, "notFound", "Not Found")
    if match[1] not in store.buckets:
        return json_error(404, "notFound", "The specified bucket does not exist.")
    return Reply(200, json.dumps(listing(store.buckets[match[1]], query)).encode())


def listing(objects: dict[str, Object], query: dict[str, str]) -> dict[str, Any]:
    """A page. Prefixes up to a delimiter take a place of the page as objects do."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    limit = min(int(query.get("maxResults", PAGE_SIZE)), PAGE_SIZE)
    entries: dict[str, Object | None] = {}
    for key in sorted(objects, key=str.encode):
        if key.startswith(prefix):
            folder, cut, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else ("", "", "")
            entries[prefix + folder + cut if cut else key] = None if cut else objects[key]
    names = [name for name in entries if name.encode() > query.get("pageToken", "").encode()]
    page = {name: entries[name] for name in names[:limit]}
    reply: dict[str, Any] = {"kind": "storage#objects"}
    if items := [(name, item) for name, item in page.items() if item]:
        reply["items"] = [
            {
                "name": name,
                "size": str(len(item.body)),
                "generation": str(item.generation),
                "timeCreated": item.created_at,
            }
            for name, item in items
        ]
    if prefixes := [name for name, item in page.items() if item is None]:
        reply["prefixes"] = prefixes
    if len(names) > limit:
        reply["nextPageToken"] = names[limit - 1]
    return reply


def answer_xml(
    store: FakeGcs, method: str, objects: dict[str, Object], key: str, headers: dict[str, str], body: bytes
) -> Reply:
    """One object."""
    current = objects.get(key)
    wanted = headers.get("x-goog-if-generation-match")
    if wanted is not None and not wanted.isdecimal():
        return xml_error(400, "InvalidArgument", "Invalid argument.")
    if wanted is not None and store.honours_conditions and int(wanted) != (current.generation if current else 0):
        return xml_error(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
    if method == "PUT":
        digest = md5(body)
        if headers.get("content-md5", digest) != digest:
            return xml_error(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
        kept = {name: headers[name] for name in ("content-type", "content-encoding") if name in headers}
        objects[key] = Object(body, store.new_generation(), kept)
        return Reply(200, b"", objects[key].told)
    if current is None:
        return xml_error(404, "NoSuchKey", "The specified key does not exist.")
    if method == "DELETE":
        del objects[key]
        return Reply(204)
    return read(current, headers)


def read(item: Object, headers: dict[str, str]) -> Reply:
    """An object or a range of it."""
    told = {**item.headers, **item.told}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
    if match is None:
        return Reply(200, item.body, told)
    start, end = int(match[1]), int(match[2] or len(item.body)) + 1
    if start >= len(item.body):
        return xml_error(416, "InvalidRange", "The requested range cannot be satisfied.")
    part = item.body[start:end]
    return Reply(206, part, {**told, "content-range": f"bytes {start}-{start + len(part) - 1}/{len(item.body)}"})


def md5(body: bytes) -> str:
    """As in headers."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def xml_error(status: int, code: str, message: str) -> Reply:
    """As the XML API says no."""
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status, text.encode(), {"content-type": "application/xml"})


def json_error(status: int, code: str, message: str) -> Reply:
    """As the JSON API says no."""
    error = {"code": status, "message": message, "errors": [{"message": message, "domain": "global", "reason": code}]}
    return Reply(status, json.dumps({"error": error}).encode(), {"content-type": "application/json"})


@dataclass
class FakeMetadata:
    """The metadata server of a node: tokens for the pod's service account."""

    email: str = "worker@project.iam.gserviceaccount.com"
    expires_in_s: int = 3600
    failures: list[int] = field(default_factory=list)
    """Statuses of the next replies to a request for a token."""
    tokens: list[str] = field(default_factory=list)
    """All that were given out."""
    valid: set[str] = field(default_factory=set)
    """Those that a store accepts: all but the `refused`."""
    refused: set[str] = field(default_factory=set)
    port: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """Lets google-auth find this server, and nothing of the user's."""
        host = f"{LOOPBACK}:{self.port}"
        return {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host, "CLOUDSDK_CONFIG": "/nonexistent"}

    def answer(self, path: str, headers: dict[str, str]) -> Reply:
        """One request."""
        told = {"Metadata-Flavor": "Google", "content-type": "application/json"}
        if headers.get("metadata-flavor") != "Google":
            return Reply(403)
        if path.endswith("/token"):
            if self.failures:
                return Reply(self.failures.pop(0), b"no", told)
            self.tokens.append(f"token-{len(self.tokens) + 1}")
            self.valid |= {self.tokens[-1]} - self.refused
            token = {"access_token": self.tokens[-1], "expires_in": self.expires_in_s, "token_type": "Bearer"}
            return Reply(200, json.dumps(token).encode(), told)
        if "/service-accounts/" in path:
            return Reply(200, json.dumps({"email": self.email, "scopes": [], "aliases": ["default"]}).encode(), told)
        return Reply(200, b"project", {**told, "content-type": "text/plain"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away: tests kill them."""


@contextmanager
def serving(server: FakeGcs | FakeMetadata) -> Iterator[None]:
    """Listen on a port of the system's choice."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # a reply in one piece

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            if isinstance(server, FakeMetadata):
                reply = server.answer(urlsplit(self.path).path, headers)
            else:
                with server.lock:
                    server.requests.append((self.command, self.path, headers))
                    reply = answer(server, self.command, self.path, headers, body)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815  (http.server's names)

        def log_message(self, *_arguments: Any) -> None:
            """Quiet."""

    listener = _Server((LOOPBACK, 0), Handler)
    server.port = listener.server_port
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
