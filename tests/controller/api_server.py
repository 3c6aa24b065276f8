"""An API server in miniature, over HTTP on loopback: objects with versions, merge patches, watches, and faults by script.

It keeps what a controller relies upon (resourceVersion conflicts, uid preconditions, finalizers, AlreadyExists) and knows
nothing of schemas. Tests change objects from outside with `put`, as kubelets, users and other controllers do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import kopf
from aiohttp import web

Object = dict[str, Any]


class Trouble(Enum):
    """What a server may do instead of answering."""

    RESET = "reset"
    """Close the connection."""
    SILENCE = "silence"
    """Take the request, and never answer."""


Fault = Callable[[str, str], web.StreamResponse | Trouble | None]
"""Given method (WATCH for a watch) and path, what is answered instead; None = as usual."""


@dataclass
class ApiServer:
    """All objects by path."""

    objects: dict[str, Object] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    """What `GET pods/NAME/log` gives, by the pod's name."""
    log_gate: asyncio.Event | None = None
    """No log is given before it is set."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of each."""
    fault: Fault = lambda _method, _path: None
    url: str = ""
    version: int = 100
    page: int | None = None
    """Objects of a list that one answer holds at most; None = as many as are asked for."""
    _watchers: list[tuple[str, asyncio.Queue[Object | None]]] = field(default_factory=list)

    def connect(self) -> kopf.ConnectionInfo:
        """For `controller.cluster.Cluster`."""
        return kopf.ConnectionInfo(server=self.url)

    def put(self, path: str, body: Object) -> Object:
        """Create or replace the object at `path`; watches hear of it."""
        is_new = path not in self.objects
        self.version += 1
        metadata = {
            "name": path.rpartition("/")[2],
            "namespace": path.split("/namespaces/")[1].split("/", maxsplit=1)[0] if "/namespaces/" in path else "",
            "uid": f"uid-{self.version}",
            "generation": 1,
            **body["metadata"],
            "resourceVersion": str(self.version),
        }
        self.objects[path] = {**body, "metadata": metadata}
        self._tell("ADDED" if is_new else "MODIFIED", path)
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers") and "/pods/" not in path:
            self.remove(path)
        return self.objects.get(path, {**body, "metadata": metadata})

    def remove(self, path: str) -> None:
        """The object is gone."""
        self.version += 1
        self._tell("DELETED", path)
        del self.objects[path]

    def of_kind(self, kind: str) -> list[Object]:
        """All objects of a kind (`pods`)."""
        return [found for path, found in sorted(self.objects.items()) if path.split("/")[-2] == kind]

    def _tell(self, change: str, path: str) -> None:
        found = self.objects[path]
        for collection, queue in self._watchers:
            if _is_in(path, collection):
                queue.put_nowait({"type": change, "object": found})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        path, method = request.path, request.method
        self.requests.append((method, path))
        faulty = self.fault("WATCH" if "watch" in request.query else method, path)
        if isinstance(faulty, Trouble):
            if faulty is Trouble.SILENCE:
                await asyncio.Event().wait()
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return await self.usual(request) if faulty is None else faulty

    async def usual(self, request: web.Request) -> web.StreamResponse:
        """The answer when no fault is wanted."""
        path, method = request.path, request.method
        if method == "GET" and path.endswith("/log"):
            name = path.split("/")[-2]
            if self.log_gate is not None:
                await self.log_gate.wait()
            return web.Response(text=self.logs[name]) if name in self.logs else _refusal(404, "NotFound", path)
        if method == "GET" and "watch" in request.query:
            return await self._watch(request)
        if method == "GET" and path in self.objects:
            return web.json_response(self.objects[path])
        if method == "GET" and _is_collection(path):
            items = [found for place, found in sorted(self.objects.items()) if _is_in(place, path)]
            first = int(request.query.get("continue", "0"))
            following = first + (self.page or len(items))
            more = {"continue": str(following)} if following < len(items) else {}
            metadata = {"resourceVersion": str(self.version), **more}
            return web.json_response({"items": items[first:following], "metadata": metadata})
        body = json.loads(await request.text() or "{}")
        if method == "POST":
            place = f"{path}/{body['metadata']['name']}"
            if place in self.objects:
                return _refusal(409, "AlreadyExists", place)
            return web.json_response(self.put(place, body), status=201)
        place = path.removesuffix("/status")
        if place not in self.objects:
            return _refusal(404, "NotFound", path)
        if method == "PATCH":
            return self._patched(place, body)
        if method == "PUT":
            if body["metadata"]["resourceVersion"] != self.objects[place]["metadata"]["resourceVersion"]:
                return _refusal(409, "Conflict", place)
            return web.json_response(self.put(place, body))
        assert method == "DELETE", method
        return self._deleted(place, body)

    def _patched(self, path: str, change: Object) -> web.Response:
        current, wanted = self.objects[path], change.get("metadata", {})
        for name in ("resourceVersion", "uid"):
            if wanted.get(name, current["metadata"][name]) != current["metadata"][name]:
                return _refusal(409, "Conflict", path)
        return web.json_response(self.put(path, _merged(current, change)))

    def _deleted(self, path: str, options: Object) -> web.Response:
        current = self.objects[path]
        uid = (options.get("preconditions") or {}).get("uid")
        if uid not in {None, current["metadata"]["uid"]}:
            return _refusal(409, "Conflict", path)
        is_held = "/pods/" in path and options.get("gracePeriodSeconds") != 0 and not _has_ended(current)
        if is_held or current["metadata"].get("finalizers"):
            stamp = {"metadata": {"deletionTimestamp": "2026-01-01T12:00:30Z"}}
            return web.json_response(self.put(path, _merged(current, stamp)))
        self.remove(path)
        return web.json_response(current)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[Object | None] = asyncio.Queue()
        entry = (request.path, queue)
        since = int(request.query["resourceVersion"])
        for path, found in sorted(self.objects.items()):
            if _is_in(path, request.path) and int(found["metadata"]["resourceVersion"]) > since:
                queue.put_nowait({"type": "MODIFIED", "object": found})
        self._watchers.append(entry)
        try:
            while (event := await queue.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self._watchers.remove(entry)
        return response

    def expire_watches(self) -> None:
        """Tell all watches that they are too old to go on from, as a server does that has compacted its history."""
        for _, queue in self._watchers:
            queue.put_nowait({"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}})

    @property
    def num_watches(self) -> int:
        """Watches that are open."""
        return len(self._watchers)

    def end_watches(self) -> None:
        """Close all watches, as a server does that restarts."""
        for _, queue in self._watchers:
            queue.put_nowait(None)


@asynccontextmanager
async def serving(server: ApiServer | None = None) -> AsyncIterator[ApiServer]:
    """A server (an empty one, if none is given) on a free port of loopback."""
    server = server or ApiServer()
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        server.end_watches()
        await runner.cleanup()


async def until(look: Callable[[], Any], what: str, *, patience_s: float = 60.0) -> Any:
    """The first true value of `look`."""
    deadline_s = asyncio.get_running_loop().time() + patience_s
    while not (found := look()):
        assert asyncio.get_running_loop().time() < deadline_s, f"waited for {what}"
        await asyncio.sleep(0.01)
    return found


def refusal(status: int, reason: str, message: str = "") -> web.Response:
    """An API server's error."""
    return _refusal(status, reason, message)


def _refusal(status: int, reason: str, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "reason": reason, "message": message, "code": status}, status=status)


def _merged(current: Any, change: Any) -> Any:
    """A JSON merge patch applied."""
    if not isinstance(change, dict):
        return change
    found = dict(current) if isinstance(current, dict) else {}
    for name, item in change.items():
        if item is None:
            found.pop(name, None)
        else:
            found[name] = _merged(found.get(name), item)
    return found


def _has_ended(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def _is_collection(path: str) -> bool:
    return path.rsplit("/", maxsplit=1)[-1] in {"pods", "nodes", "events", "inferenceruns"}


def _is_in(path: str, collection: str) -> bool:
    """Whether the object at `path` belongs to `collection`, which may span all namespaces."""
    root, _, kind = collection.rpartition("/")
    return path.rpartition("/")[0] == collection or (
        "/namespaces/" not in collection and path.startswith(f"{root}/namespaces/") and path.split("/")[-2] == kind
    )
