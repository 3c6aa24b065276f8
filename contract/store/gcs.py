"""Google Cloud Storage, through its own API: conditions by generation, tokens without keys.

Google's S3 interface ignores If-Match and If-None-Match on writes, so `s3://` cannot be used for it. Objects are read and
written through the XML API (a plain PUT with `x-goog-if-generation-match`, Content-MD5 and a bearer token) and listed
through the JSON API, which tells generations. The ETag of the protocol is the generation: it changes with every put,
also of equal bytes. Sources: cloud.google.com/storage/docs/request-preconditions, /xml-api/put-object,
/json_api/v1/objects/list.

Puts are sent once, whatever happens; reads, listings and deletes up to three times. A request that is answered 401 was
not applied, so it is sent once more with a new token.

Credentials are the application default ones of every Google tool: GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth
application-default login`, or the pod's service account (Workload Identity). With STORAGE_EMULATOR_HOST all requests go
there, without credentials; CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE names a private endpoint.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode, urlsplit

from contract.store.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    UnsuitableStore,
)
from contract.store.google_account import REMEDY, Account, account_edge, application_default
from contract.store.protocol import Body, ETag, Listed, Stored, checked_range, view_of

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool

CONNECT_TIMEOUT_S = 5.0
"""For a connection, and for each send of a piece of a body."""
READ_TIMEOUT_S = 20.0
"""For each wait for bytes, as contract.store.s3 has it and for the same reasons."""
MAX_CONNECTIONS = 32
"""Parallel requests of one store that keep their connection."""
NUM_READ_ATTEMPTS = 3

ENV_EMULATOR = "STORAGE_EMULATOR_HOST"
ENV_ENDPOINT = "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"
_ENDPOINT_URL = "https://storage.googleapis.com"
_SEND_BYTES = 256 << 10
"""Of a body in one send, which must end within the connect timeout: 64 MiB at once would never get through at less than
13 MB/s. A file would go in pieces of 16 KiB, and each would wait for the interpreter."""
_PAGE_SIZE = 1000
"""Objects per page of a listing, the most the API gives."""

_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",  # 400: the body was changed on its way; not stored
        "IncompleteBody",
        "RequestTimeout",
        "rateLimitExceeded",  # 403 for some quotas, 429 for others
        "userRateLimitExceeded",
    }
)
_GENERATION = re.compile(r"[1-9][0-9]{0,17}")
_NO_GENERATION = "1"
"""What no object has (they are microseconds since 1970): asked for in the place of an ETag of another kind of store. 0
would mean: create."""


class GcsStore:
    """A prefix of a bucket. Threads may share it; a forked process may not."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._bucket = bucket
        self._root = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        emulator = _with_scheme(os.environ.get(ENV_EMULATOR, ""))
        self._is_emulated = bool(emulator)
        self._endpoint_url = endpoint_url or emulator or os.environ.get(ENV_ENDPOINT) or _ENDPOINT_URL
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s

    @property
    def uri(self) -> str:
        """Root URI."""
        return f"gs://{self._bucket}/{self._root}".rstrip("/")

    @property
    def endpoint(self) -> str:
        """URL that requests go to."""
        return self._endpoint_url

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """See ObjectStore. A whole object is compared with the MD5 that the store keeps of it."""
        checked_range(start, end)
        if end == start:  # a Range header cannot ask for nothing
            return self._head(key)
        # Without this header an object that was stored with Content-Encoding: gzip is unpacked on its way, and its
        # listed size and byte ranges would mean nothing.
        headers = {"Accept-Encoding": "gzip"}
        if (start, end) != (0, None):
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        try:
            reply = self._read("GET", self._path(key), key, headers)
        except _BeyondEnd:
            return self._head(key)
        if reply.status == 206:
            return Stored(reply.data, _generation(reply, key))
        if not _is_intact(reply):
            raise Unavailable(key, f"{self.uri}: what arrived has another MD5 than what is stored")
        return Stored(reply.data[start:end], _generation(reply, key))

    def put_overwrite(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        return self._put(key, body, {}, refused=OutcomeUnknown)

    def put_create(self, key: str, body: Body) -> ETag:
        """See ObjectStore."""
        return self._put(key, body, {"x-goog-if-generation-match": "0"}, refused=AlreadyExists)

    def put_update(self, key: str, body: Body, etag: ETag) -> ETag:
        """See ObjectStore."""
        generation = etag if _GENERATION.fullmatch(etag) else _NO_GENERATION
        try:
            return self._put(key, body, {"x-goog-if-generation-match": generation}, refused=PreconditionFailed)
        except PreconditionFailed:
            # The store says the same of an object that is gone; the protocol does not.
            with contextlib.suppress(Unavailable):
                self._head(key)
            raise

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """See ObjectStore. Folder markers that consoles make (empty, name ends in '/') are no objects."""
        query = {
            "prefix": self._root + prefix,
            "maxResults": str(_PAGE_SIZE),
            **({} if is_deep else {"delimiter": "/"}),
            "fields": "nextPageToken,items(name,size,generation,timeCreated)",
        }
        path = f"/storage/v1/b/{quote(self._bucket, safe='')}/o"
        while True:
            try:
                reply = self._read("GET", f"{path}?{urlencode(query)}", self._root + prefix, {})
            except NotFound as error:
                raise self._no_bucket(error.key, error.detail) from error
            page = self._page(reply, self._root + prefix)
            for item in page.get("items", ()):
                if int(item["size"]) or not item["name"].endswith("/"):
                    yield Listed(
                        item["name"].removeprefix(self._root),
                        int(item["size"]),
                        ETag(str(item["generation"])),
                        datetime.fromisoformat(item["timeCreated"]).astimezone(UTC),
                    )
            if not (token := page.get("nextPageToken")):
                return
            query["pageToken"] = token

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with contextlib.suppress(NotFound):
            self._read("DELETE", self._path(key), key, {})

    def _put(self, key: str, body: Body, condition: Mapping[str, str], *, refused: type[StoreError]) -> ETag:
        with view_of(body) as view:
            digest = hashlib.md5(view, usedforsecurity=False).digest()
            headers = {
                "Content-Length": str(len(view)),
                "Content-MD5": base64.b64encode(digest).decode(),
                "Content-Type": "application/octet-stream",
                **condition,
            }
            reply = self._request("PUT", self._path(key), key, headers, view, doubtful=OutcomeUnknown, refused=refused)
        return _generation(reply, key)

    def _head(self, key: str) -> Stored:
        return Stored(b"", _generation(self._read("HEAD", self._path(key), key, {}), key))

    def _page(self, reply: BaseHTTPResponse, key: str) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            page = json.loads(reply.data)
            if isinstance(page, dict):
                return page
        # Something on the way has answered in the store's place: `items` missing would look like an empty bucket.
        raise Unavailable(key, f"{self.uri}: the listing is no JSON object but {reply.data[:100]!r}")

    def _path(self, key: str) -> str:
        return f"/{self._bucket}/{quote(self._root + key, safe='/')}"

    def _read(self, method: str, target: str, key: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        return self._request(method, target, key, headers, None, doubtful=Unavailable, refused=PreconditionFailed)

    def _request(
        self,
        method: str,
        target: str,
        key: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        *,
        doubtful: type[StoreError],
        refused: type[StoreError],
    ) -> BaseHTTPResponse:
        """The reply to a request that succeeded; everything else becomes one of the protocol's errors here.

        Args:
            method: PUT goes out once; the others are repeated.
            target: path and query.
            key: for messages.
            headers: those of the request itself.
            body: of a PUT.
            doubtful: what an answer that settles nothing becomes: OutcomeUnknown for writes, Unavailable for reads.
            refused: what 412 becomes.
        """
        account, shown = self._account(key, doubtful)
        reply = self._send(method, target, key, {**headers, **shown}, body, doubtful)
        if reply.status == 401 and account:
            with account_edge(key, doubtful=doubtful):
                account.renew(shown)
                shown = account.headers(self._endpoint_url)
            reply = self._send(method, target, key, {**headers, **shown}, body, doubtful)
        if not 200 <= reply.status < 300:
            raise self._from_reply(reply, key, account, doubtful, refused)
        return reply

    def _send(
        self,
        method: str,
        target: str,
        key: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        doubtful: type[StoreError],
    ) -> BaseHTTPResponse:
        from urllib3 import Retry  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        retries = Retry(
            total=NUM_READ_ATTEMPTS - 1,
            allowed_methods=None,  # any
            status_forcelist={408, 429, 500, 502, 503, 504},
            backoff_factor=0.1,
            backoff_jitter=0.1,
            raise_on_status=False,
            respect_retry_after_header=False,  # it may name minutes; the caller has a patience of its own
        )
        try:
            with _pieces(body) as pieces:
                return self._pool.urlopen(
                    method,
                    target,
                    headers={**headers, "User-Agent": "inferencerun-operator"},
                    body=cast("list[bytes] | None", pieces),
                    retries=False if method == "PUT" else retries,
                    redirect=False,
                    decode_content=False,
                )
        except HTTPError as error:
            said = f"{self._endpoint_url}: {error}"
            if "CERTIFICATE_VERIFY_FAILED" in said:
                raise AccessDenied(key, f"{said}; name the endpoint's authority in SSL_CERT_FILE") from error
            raise doubtful(key, said) from error

    def _account(self, key: str, doubtful: type[StoreError]) -> tuple[Account | None, dict[str, str]]:
        """Who asks, and the headers that show it. Emulators want neither."""
        if self._is_emulated:
            return None, {}
        with account_edge(key, doubtful=doubtful):
            account = application_default()
            return account, account.headers(self._endpoint_url)

    def _from_reply(
        self,
        reply: BaseHTTPResponse,
        key: str,
        account: Account | None,
        doubtful: type[StoreError],
        refused: type[StoreError],
    ) -> StoreError:
        code, message = _explained(reply.data)
        said = f"{self.uri} answered {reply.status} {code}: {message}".rstrip(": ")
        if reply.status == 412:
            return refused(key, said)
        if code == "NoSuchBucket":
            return self._no_bucket(key, said)
        if reply.status == 404:
            return NotFound(key, said)
        if reply.status == 416:
            return _BeyondEnd(key, said)
        # After 5xx a put may have been applied all the same. 429: one object takes about one write a second.
        if reply.status >= 500 or reply.status in _TRANSIENT_STATUSES or code in _TRANSIENT_CODES:
            return doubtful(key, said)
        if reply.status == 401:
            return AccessDenied(key, f"{said}; {REMEDY}")
        if reply.status == 403:
            name = account.name if account else "everybody"
            return AccessDenied(key, f"{said}; grant {name} roles/storage.objectUser on gs://{self._bucket}")
        return AccessDenied(key, f"{said}; correct the URI, {ENV_ENDPOINT} or {ENV_EMULATOR}")

    def _no_bucket(self, key: str, said: str) -> AccessDenied:
        return AccessDenied(key, f"{said}; create bucket {self._bucket!r}, or correct the URI")

    @functools.cached_property
    def _pool(self) -> HTTPConnectionPool:
        """Made at the first call: opening a store must cost nothing."""
        import urllib3  # noqa: PLC0415
        from urllib3.connection import HTTPConnection  # noqa: PLC0415

        options: dict[str, Any] = {
            "maxsize": MAX_CONNECTIONS,
            "timeout": urllib3.Timeout(connect=self._connect_timeout_s, read=self._read_timeout_s),
            "socket_options": [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
        }
        parts = urlsplit(self._endpoint_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise AccessDenied(self.uri, f"{self._endpoint_url!r} is no URL; correct {ENV_ENDPOINT} or {ENV_EMULATOR}")
        proxy_url = urllib.request.getproxies().get(parts.scheme)
        if proxy_url and not urllib.request.proxy_bypass(parts.hostname):
            manager: urllib3.PoolManager = urllib3.ProxyManager(proxy_url, **options)
        else:
            manager = urllib3.PoolManager(**options)
        return manager.connection_from_host(parts.hostname, parts.port, parts.scheme)


class _BeyondEnd(StoreError):
    """416: the range starts at or beyond the object's end."""


@contextlib.contextmanager
def _pieces(body: memoryview | None) -> Iterator[list[memoryview] | None]:
    """The body in pieces of _SEND_BYTES. Released at the end, or a writer could not fill its buffer again."""
    if body is None:
        yield None
        return
    with contextlib.ExitStack() as views:
        yield [views.enter_context(body[start : start + _SEND_BYTES]) for start in range(0, len(body), _SEND_BYTES)]


def _generation(reply: BaseHTTPResponse, key: str) -> ETag:
    generation = reply.headers.get("x-goog-generation")
    if generation is None:
        raise UnsuitableStore(key, "answered without x-goog-generation: this is no Google Cloud Storage")
    return ETag(generation)


def _is_intact(reply: BaseHTTPResponse) -> bool:
    """Composite objects have no MD5."""
    stored = re.search(r"md5=([A-Za-z0-9+/]+=*)", reply.headers.get("x-goog-hash", ""))
    digest = hashlib.md5(reply.data, usedforsecurity=False).digest()
    return stored is None or stored[1] == base64.b64encode(digest).decode()


def _explained(body: bytes) -> tuple[str, str]:
    """(code, message) of an error reply: XML, JSON, or whatever something on the way has made of it."""
    text = body[:4096].decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        error = json.loads(text)["error"]
        return str(error["errors"][0]["reason"]), str(error["message"])
    code, message = (re.search(rf"<{name}>([^<]*)", text) for name in ("Code", "Message"))
    return (code[1], message[1] if message else "") if code else ("", text.strip()[:200])


def _with_scheme(host: str) -> str:
    """Google's own libraries take the emulator with and without a scheme."""
    return host if not host or "://" in host else f"http://{host}"
