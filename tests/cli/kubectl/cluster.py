"""A cluster as the plug-in sees it: the miniature API server in a thread, a kubeconfig, and objects to look at."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from click.testing import CliRunner, Result

from cli.kubectl.main import main
from contract.names import LABEL_ATTEMPT, LABEL_RUN, LABEL_RUN_UID, LABEL_SLOT
from tests.controller.api_server import ApiServer, Object, refusal, serving

NAMESPACE = "proteins"
RUNS = f"/apis/inferencerun.dev/v1alpha1/namespaces/{NAMESPACE}/inferenceruns"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
CREATED = "2026-03-01T11:00:00Z"


def resource(output: str, name: str = "swissprot") -> Object:
    """A run, as little of it as its output needs."""
    return {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"output": {"uri": output}}}


@dataclass
class Server(ApiServer):
    """With what the plug-in asks beyond a controller: the scale subresource, labels, rights, who is not there."""

    denied: frozenset[str] = frozenset()
    """`patch inferenceruns` and the like: what a review of the user's rights says no to."""

    async def usual(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        path, method = request.path, request.method
        if method == "PATCH" and path.endswith("/scale"):
            replicas = json.loads(await request.text())["spec"]["replicas"]
            found = self.objects[path.removesuffix("/scale")]
            spec = {**found["spec"], "workers": {**found["spec"]["workers"], "count": replicas}}
            generation = found["metadata"]["generation"] + 1
            metadata = {**found["metadata"], "generation": generation}
            return web.json_response(
                self.put(path.removesuffix("/scale"), {**found, "metadata": metadata, "spec": spec})
            )
        if method == "POST" and path.endswith("/selfsubjectaccessreviews"):
            attributes = json.loads(await request.text())["spec"]["resourceAttributes"]
            what = "/".join(filter(None, (attributes["resource"], attributes.get("subresource"))))
            return web.json_response(
                {"status": {"allowed": f"{attributes['verb']} {what}" not in self.denied}}, status=201
            )
        if method == "GET" and path.rpartition("/")[2] in {"leases", "deployments"}:
            root, _, kind = path.rpartition("/")
            items = [
                item
                for item in self.of_kind(kind)
                if "/namespaces/" not in root or root.endswith(f"/{item['metadata']['namespace']}")
            ]
            return web.json_response({"items": items, "metadata": {}})
        if method == "GET" and path.startswith(RUNS) and path != RUNS and path not in self.objects:
            name = path.rpartition("/")[2]
            return refusal(404, "NotFound", f'inferenceruns.inferencerun.dev "{name}" not found')
        answered = await super().usual(request)
        selector = request.query.get("labelSelector")
        if method == "GET" and selector and isinstance(answered, web.Response) and answered.text:
            wanted = {tuple(item.split("=", 1)) for item in selector.split(",")}
            body = json.loads(answered.text)
            body["items"] = [
                item for item in body["items"] if wanted <= set((item["metadata"].get("labels") or {}).items())
            ]
            return web.json_response(body)
        return answered


@dataclass
class FakeCluster:
    """The server, and how to reach it."""

    server: Server
    kubeconfig: Path

    def run(self, *arguments: str | Path) -> Result:
        """The plug-in's result, on this cluster."""
        where = ["--kubeconfig", str(self.kubeconfig)]
        return CliRunner().invoke(main, [*map(str, arguments), *where], catch_exceptions=False)

    def run_json(self, *arguments: str | Path, exit_code: int = 0) -> dict[str, Any]:
        """What it prints with --json."""
        result = self.run(*arguments, "--json")
        assert result.exit_code == exit_code, result.output
        found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return found

    def apply(self, name: str = "swissprot", *, output: str = "file:///out", **status: Any) -> Object:
        """A run with a status that somebody has written."""
        return self.server.put(
            f"{RUNS}/{name}",
            {
                "apiVersion": "inferencerun.dev/v1alpha1",
                "kind": "InferenceRun",
                "metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": CREATED},
                "spec": {
                    "input": {"uris": ["s3://bucket/in/"]},
                    "output": {"uri": output},
                    "model": {"name": "kmer"},
                    "workers": {"count": 2},
                },
                **({"status": {"observedGeneration": 1, **status}} if status else {}),
            },
        )

    def resource(self, name: str = "swissprot") -> Object:
        """The run, as it is by now."""
        return self.server.objects[f"{RUNS}/{name}"]

    def add_pod(
        self,
        slot: int,
        *,
        run: str = "swissprot",
        node: str = "node-a",
        uid: str = "",
        state: str = "running",
        **status: Any,
    ) -> Object:
        """A worker pod, running unless its container's `state` is another."""
        name = f"{run}-{slot}-0"
        states: dict[str, Any] = {
            "running": {"running": {"startedAt": CREATED}},
            "ended": {"terminated": {"exitCode": 0, "startedAt": CREATED, "finishedAt": CREATED}},
            "none": {},
        }
        worker = {"name": "worker", "state": states.get(state, {"waiting": {"reason": state}})}
        return self.server.put(
            f"{PODS}/{name}",
            {
                "metadata": {
                    "name": name,
                    "uid": uid or f"uid-{name}",
                    "creationTimestamp": CREATED,
                    "labels": {
                        LABEL_RUN: run,
                        LABEL_RUN_UID: f"uid-{run}",
                        LABEL_SLOT: str(slot),
                        LABEL_ATTEMPT: "0",
                    },
                },
                "spec": {"containers": [{"name": "worker"}], **({"nodeName": node} if node else {})},
                "status": {
                    "phase": "Running",
                    **({"containerStatuses": [worker]} if state != "none" else {}),
                    **status,
                },
            },
        )


@contextmanager
def fake_cluster(directory: Path) -> Iterator[FakeCluster]:
    """A cluster on loopback, without anything in it."""
    ready: list[Server] = []
    is_up, loop = threading.Event(), asyncio.new_event_loop()

    async def work() -> None:
        server = Server()
        async with serving(server):
            ready.append(server)
            is_up.set()
            await stopped.wait()

    stopped = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(work(),), daemon=True)
    thread.start()
    assert is_up.wait(10)
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": ready[0].url}}],
                "users": [{"name": "test", "user": {"token": "secret"}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
            }
        )
    )
    try:
        yield FakeCluster(ready[0], kubeconfig)
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
        loop.close()
