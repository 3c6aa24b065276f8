"""The Kubernetes API as this controller uses it: requests that settle, lists by the page, watches. No policy.

A thin client of its own over aiohttp (which kopf brings along): it needs a dozen calls, none of which differs between
API servers 1.20 and current ones, and the official client costs more memory than all the rest of the controller.

Every request is tried again for RETRY_BUDGET_S while the server does not answer or is overloaded. All writes that this
controller makes bear repetition: creations have deterministic names, changes carry a resourceVersion, deletions a uid.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import kopf

from contract.errors import SpecError
from contract.names import API_GROUP, API_VERSION
from controller.token_bucket import TokenBucket

RETRY_BUDGET_S = 15.0
"""For one request, waits included. Whoever asked tries again later: nothing is lost by an API server that is away."""
REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
TAIL_TIMEOUT_S = 10.0
"""For the end of a log, which comes through a kubelet that may be gone."""
TAILS = 8
"""Logs read at once, for all runs: kubelets that do not answer must leave connections to everything else."""
WATCH_SILENCE_S = 75.0
"""Most API servers send a bookmark about once a minute; older ones say nothing where nothing changes. So a watch that is
silent for longer may be dead, whatever TCP says: it is ended, and begun anew from where it was."""
WATCH_S = (240, 300)
"""A watch lasts for so long, drawn anew each time, so that many do not end at once."""
PAGE = 500
LIST_TRIES = 3
"""Of a list that expires between its pages: a server that cannot keep it for so long needs a pause."""
TOKEN_AGE_S = 60.0
"""The kubelet renews a service account's token well before it ends, and expects it to be read again at least this often."""

RUNS = "inferenceruns"
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MERGE_PATCH = "application/merge-patch+json"

Object = dict[str, Any]


class ApiError(Exception):
    """The API server refused a request. `status` is HTTP's, `reason` is Kubernetes' own word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class ObjectMissing(ApiError):
    """No such object: 404."""


class ObjectExists(ApiError):
    """A creation met an object of that name: 409 AlreadyExists."""


class ObjectChanged(ApiError):
    """The object is another version, or another object, by now: 409 Conflict. Read it and decide anew."""


class HistoryExpired(ApiError):
    """A watch or list cannot go on from here: 410. List again."""


class ApiUnavailable(Exception):
    """The API server does not answer, or not usefully, and did not for RETRY_BUDGET_S. Try again later."""


def connection() -> kopf.ConnectionInfo:
    """Where the API server is, and how to log in: a service account in a pod, else the kubeconfig file.

    Raises:
        SpecError: neither is there.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host and (_SERVICE_ACCOUNT / "token").exists():
        # By address, as all of Kubernetes' own clients do: it works before the cluster's DNS does.
        address = f"[{host}]" if ":" in host else host
        return kopf.ConnectionInfo(
            server=f"https://{address}:{port}",
            ca_path=str(_SERVICE_ACCOUNT / "ca.crt"),
            token=(_SERVICE_ACCOUNT / "token").read_text().strip(),
            default_namespace=(_SERVICE_ACCOUNT / "namespace").read_text().strip(),
        )
    found = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    if not isinstance(found, kopf.ConnectionInfo):
        raise SpecError("no API server: run in a pod with a service account, or set KUBECONFIG")
    return found


class Cluster:
    """One API server. For one event loop; `close` it at the end."""

    def __init__(
        self,
        connect: Callable[[], kopf.ConnectionInfo],
        *,
        writes: TokenBucket,
        name: str,
        observe: Callable[[str, str, float], None] = lambda _method, _code, _seconds: None,
    ) -> None:
        """Connect lazily; nothing is sent yet.

        Args:
            connect: gives address and credentials; asked again every TOKEN_AGE_S.
            writes: limits creations, changes and deletions.
            name: user agent, and field manager of what is written.
            observe: told of each request: method (or WATCH), HTTP status or `none` for no answer, seconds to the answer.
        """
        self._connect = connect
        self._writes = writes
        self._info = connect()
        self._read_at_s = time.monotonic()
        self._tls = self._info.as_ssl_context()
        self._name = name
        self._observe = observe
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64), headers={"User-Agent": name}, trust_env=self._info.trust_env
        )
        self._tails = asyncio.Semaphore(TAILS)
        self.num_requests: dict[str, int] = {}
        """Requests sent, by method."""

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def get(self, path: str, **parameters: str) -> Object:
        """One object."""
        return await self._request("GET", path, parameters=parameters)

    async def get_tail(self, path: str, *, num_bytes: int, **parameters: str) -> bytes:
        """The last bytes of a text (a log), asked for once: whoever has it may be in trouble himself."""
        timeout = aiohttp.ClientTimeout(total=TAIL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        tail = b""
        try:
            async with self._tails:
                with self._asked("GET") as answered:
                    async with self._session.get(
                        self._url(path), params=parameters, headers=self._headers(), ssl=self._tls, timeout=timeout
                    ) as response:
                        async for chunk in response.content.iter_any():
                            tail = (tail + chunk)[-num_bytes:]
                        answered(response.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiUnavailable(f"GET {path}: {error!r}") from error
        if response.status >= 300:
            raise _error(response.status, tail)
        return tail

    async def create(self, path: str, body: Object) -> Object:
        """Create an object. Raises ObjectExists, which may be the doing of this very call when a reply was lost."""
        return await self._request("POST", path, body=body)

    async def patch(self, path: str, body: Object) -> Object:
        """Merge-patch an object. With `metadata.resourceVersion` in the body it raises ObjectChanged when it moved on."""
        return await self._request("PATCH", path, body=body, content_type=_MERGE_PATCH)

    async def update(self, path: str, body: Object) -> Object:
        """Replace an object of the version in `metadata.resourceVersion`. Raises ObjectChanged."""
        return await self._request("PUT", path, body=body)

    async def delete(self, path: str, *, uid: str, grace_s: int | None = None) -> None:
        """Delete the object with this uid; nothing when it is gone, or another one has its name.

        Args:
            path: of the object.
            uid: of the object.
            grace_s: seconds; None = the object's own.
        """
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            await self._request("DELETE", path, body=body)
        except (ObjectMissing, ObjectChanged):
            return

    async def list_all(self, path: str, **parameters: str) -> tuple[list[Object], str]:
        """All objects, and the resourceVersion from which a watch goes on. Asked by the page.

        Raises:
            ApiUnavailable: the list expired between two pages each time; callers wait, and ask again.
        """
        for _ in range(LIST_TRIES):
            try:
                return await self._pages(path, parameters)
            except HistoryExpired:
                continue  # between two pages: a list that takes minutes starts again
        raise ApiUnavailable(f"the list of {path} expired between its pages {LIST_TRIES} times in a row")

    async def _pages(self, path: str, parameters: Mapping[str, str]) -> tuple[list[Object], str]:
        items: list[Object] = []
        more = ""
        while True:
            page = {**parameters, "limit": str(PAGE), **({"continue": more} if more else {})}
            found = await self._request("GET", path, parameters=page)
            items.extend(found.get("items") or [])
            more = found["metadata"].get("continue") or ""
            if not more:
                return items, found["metadata"].get("resourceVersion") or ""

    async def watch(self, path: str, *, since: str, **parameters: str) -> AsyncIterator[tuple[str, Object]]:
        """Changes since a resourceVersion: (ADDED, MODIFIED, DELETED or BOOKMARK, object). Ends now and then.

        Raises:
            HistoryExpired: list again.
            ApiError: refused.
            ApiUnavailable: no connection, or one that fell silent.
        """
        seconds = random.randint(*WATCH_S)  # noqa: S311  (spreads load)
        query = {
            **parameters,
            "watch": "true",
            "resourceVersion": since,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=WATCH_SILENCE_S)
        try:
            with self._asked("WATCH") as answered:
                async with self._session.get(
                    self._url(path), params=query, headers=self._headers(), ssl=self._tls, timeout=timeout
                ) as response:
                    answered(response.status)
                    if response.status >= 300:
                        raise _error(response.status, await response.read())
                    yield "BOOKMARK", {"metadata": {"resourceVersion": since}}  # it answers
                    async for line in _lines(response.content):
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            found = event["object"]
                            raise _error(int(found.get("code") or 500), line, found)
                        yield event["type"], event["object"]
        except aiohttp.SocketTimeoutError:
            return
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiUnavailable(f"watch of {path}: {error!r}") from error

    async def _request(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        deadline_s = time.monotonic() + RETRY_BUDGET_S
        attempt = 0
        while True:
            if method != "GET":
                await self._writes.take()
            attempt += 1
            try:
                return await self._once(method, path, parameters, body, content_type)
            except ApiError as error:
                if error.status != 429 and error.status < 500:
                    raise
                problem: Exception = error
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                problem = error
            wait_s = random.uniform(0, min(5.0, 0.1 * 2.0**attempt))  # noqa: S311  (jitter)
            if time.monotonic() + wait_s > deadline_s:
                raise ApiUnavailable(f"{method} {path}, tried {attempt} times: {problem!r}") from problem
            await asyncio.sleep(wait_s)

    async def _once(
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: Object | None, content_type: str
    ) -> Object:
        headers = {**self._headers(), "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        query = dict(parameters or {})
        if method in {"POST", "PUT", "PATCH"}:
            query["fieldManager"] = self._name
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        with self._asked(method) as answered:
            async with self._session.request(
                method,
                self._url(path),
                params=query,
                data=None if body is None else json.dumps(body),
                headers=headers,
                ssl=self._tls,
                timeout=timeout,
            ) as response:
                content = await response.read()
                answered(response.status)
        if response.status >= 300:
            raise _error(response.status, content)
        found: Object = json.loads(content)
        return found

    def _url(self, path: str) -> str:
        return f"{self._info.server.rstrip('/')}{path}"

    def _headers(self) -> dict[str, str]:
        now_s = time.monotonic()
        if now_s - self._read_at_s > TOKEN_AGE_S:
            self._info, self._read_at_s = self._connect(), now_s
        return self._info.as_http_headers()

    @contextmanager
    def _asked(self, method: str) -> Iterator[Callable[[int], None]]:
        """Around a request: counts it, and is told the status of its answer."""
        self.num_requests[method] = self.num_requests.get(method, 0) + 1
        started_s, is_answered = time.monotonic(), False

        def answered(status: int) -> None:
            nonlocal is_answered
            is_answered = True
            self._observe(method, str(status), time.monotonic() - started_s)

        try:
            yield answered
        finally:
            if not is_answered:
                self._observe(method, "none", time.monotonic() - started_s)


def core_path(namespace: str, kind: str, name: str = "") -> str:
    """Path of pods, events and so on; an empty namespace = all."""
    return _path("/api/v1", namespace, kind, name)


def group_path() -> str:
    """Path of what the server has of our API group."""
    return f"/apis/{API_GROUP}/{API_VERSION}"


def run_path(namespace: str, name: str = "", subresource: str = "") -> str:
    """Path of runs; an empty namespace = all."""
    return _path(group_path(), namespace, RUNS, name) + (f"/{subresource}" if subresource else "")


def lease_path(namespace: str, name: str = "") -> str:
    """Path of leases."""
    return _path("/apis/coordination.k8s.io/v1", namespace, "leases", name)


def _path(root: str, namespace: str, kind: str, name: str) -> str:
    scope = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{scope}/{kind}" + (f"/{quote(name, safe='')}" if name else "")


def _error(status: int, content: bytes, found: Object | None = None) -> ApiError:
    if found is None:
        try:
            found = json.loads(content)
        except ValueError:
            found = None
    fields = found if isinstance(found, dict) else {}
    reason, message = fields.get("reason") or "", fields.get("message") or content[:300].decode(errors="replace")
    kinds: dict[int, type[ApiError]] = {404: ObjectMissing, 410: HistoryExpired}
    if status == 409:
        kinds[409] = ObjectExists if reason == "AlreadyExists" else ObjectChanged
    return kinds.get(status, ApiError)(status, reason, message)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length: an object of a megabyte is one line."""
    parts: list[bytes] = []
    async for chunk in content.iter_any():
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = b"".join((*parts, end))
            parts = []
            if line:
                yield line
        if rest:
            parts.append(rest)
