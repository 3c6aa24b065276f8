"""The Kubernetes API as the plug-in uses it: JSON in, JSON out, with the access that kubectl has.

The official client reads the kubeconfig file (contexts, certificates, tokens that a cloud's log-in program prints and
renews) and opens connections; of its models and calls nothing is used (docs/adr/0017-kubectl-plug-in.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from contract.errors import InferenceRunError, SpecError
from contract.names import API_GROUP, API_VERSION, ExitCode

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
PAGE = 500
RUNS = "inferenceruns"
CRD_NAME = f"{RUNS}.{API_GROUP}"

Object = dict[str, Any]


class ApiRefused(InferenceRunError):
    """The API server refused a request; `status` is HTTP's. The same request would be refused again."""

    exit_code = ExitCode.INVALID

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ObjectMissing(ApiRefused):
    """No such object: 404."""


class Forbidden(ApiRefused):
    """The user may not do this: 401 or 403. Whoever administers the cluster can change that."""


class ApiUnreachable(InferenceRunError):
    """The API server does not answer, or not usefully. Try again later, or check `kubectl cluster-info`."""

    exit_code = ExitCode.TRANSIENT


class Api:
    """One API server, with one user's credentials. Threads may share it."""

    def __init__(self, client: Any, *, default_namespace: str) -> None:
        """`client` is a `kubernetes.client.ApiClient`."""
        self._configuration = client.configuration
        self._pool: urllib3.PoolManager = client.rest_client.pool_manager
        self.default_namespace = default_namespace

    def get(self, path: str, **query: str) -> Object:
        """One object. Raises ObjectMissing, Forbidden, ApiRefused, ApiUnreachable; as do all of the following."""
        return self._object("GET", path, query)

    def list_all(self, path: str, **query: str) -> list[Object]:
        """All objects of a list, asked by the page."""
        items: list[Object] = []
        more = ""
        while True:
            page = self.get(path, limit=str(PAGE), **query, **({"continue": more} if more else {}))
            items.extend(page.get("items") or [])
            more = page["metadata"].get("continue") or ""
            if not more:
                return items

    def create(self, path: str, body: Object) -> Object:
        """Create an object."""
        return self._object("POST", path, {}, body=body, content_type="application/json")

    def patch(self, path: str, body: Object) -> Object:
        """Merge-patch an object."""
        return self._object("PATCH", path, {}, body=body, content_type="application/merge-patch+json")

    def lines(self, path: str, *, is_endless: bool = False, **query: str) -> Iterator[bytes]:
        """Lines of an answer that is text, as they come.

        Args:
            path: of the resource.
            is_endless: the server may be silent for any time between two lines.
            query: parameters.
        """
        with self._answer("GET", path, query, read_timeout_s=None if is_endless else READ_TIMEOUT_S) as answer:
            rest = b""
            try:
                for chunk in answer.stream(1 << 16, decode_content=True):
                    *whole, rest = (rest + chunk).split(b"\n")
                    yield from whole
            except urllib3.exceptions.HTTPError as error:
                raise ApiUnreachable(f"{self._configuration.host}{path}: broken off ({error})") from error
            if rest:
                yield rest

    def _object(
        self, method: str, path: str, query: Mapping[str, str], *, body: Object | None = None, content_type: str = ""
    ) -> Object:
        with self._answer(method, path, query, body=body, content_type=content_type) as answer:
            try:
                found: Object = json.loads(answer.read(decode_content=True))
            except (ValueError, urllib3.exceptions.HTTPError) as error:
                raise ApiUnreachable(f"{self._configuration.host}{path}: {error!r}") from error
            return found

    def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        body: Object | None = None,
        content_type: str = "",
        read_timeout_s: float | None = READ_TIMEOUT_S,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json, */*", "User-Agent": "kubectl-inferencerun"}
        if content_type:
            headers["Content-Type"] = content_type
        for setting in self._configuration.auth_settings().values():  # renews a token that has run out
            headers[setting["key"]] = setting["value"]
        try:
            answer = self._pool.request(
                method,
                f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else ""),
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=read_timeout_s),
                # Who asks sees at once when a server is away; what changes something is never sent twice.
                retries=urllib3.Retry(total=2, status=0, redirect=0, backoff_factor=0.2) if method == "GET" else False,
                preload_content=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise ApiUnreachable(
                f"the API server {self._configuration.host} does not answer ({error}); check 'kubectl cluster-info'"
            ) from error
        if answer.status >= 300:
            with answer:
                raise _refusal(answer.status, answer.read(decode_content=True))
        return answer


def connect(kubeconfig: Path | None = None, context: str | None = None) -> Api:
    """Access as kubectl has it: --kubeconfig, KUBECONFIG, ~/.kube/config; in a pod without these its service account.

    Raises:
        SpecError: there is none, or no such context.
    """
    try:
        from kubernetes import client, config  # noqa: PLC0415  (0.3 s that --help does not pay)
    except ImportError as error:
        raise SpecError(
            "no client for Kubernetes is installed: pip install '.[kubectl]' in a checkout of the project"
        ) from error

    paths = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or "~/.kube/config"
    configuration = client.Configuration()
    try:
        contexts, active = config.list_kube_config_contexts(config_file=paths)  # type: ignore[no-untyped-call]
        config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=paths, context=context, client_configuration=configuration, persist_config=False
        )
    except (config.ConfigException, OSError) as error:
        if kubeconfig is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            return _in_pod(client, config)
        raise SpecError(
            f"no access to a cluster ({error}); name a file with --kubeconfig or KUBECONFIG, and one of its contexts "
            "with --context"
        ) from error
    chosen = next((item for item in contexts if item["name"] == context), active)
    return Api(client.ApiClient(configuration), default_namespace=chosen["context"].get("namespace") or "default")


def _in_pod(client: Any, config: Any) -> Api:
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException as error:
        raise SpecError(f"no access to the cluster of this pod: {error}; give it a service account") from error
    namespace = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return Api(client.ApiClient(configuration), default_namespace=namespace.read_text().strip())


def run_path(namespace: str, name: str = "", subresource: str = "") -> str:
    """Path of runs, of one, or of a part of it; an empty namespace = all."""
    return _path(f"/apis/{API_GROUP}/{API_VERSION}", namespace, RUNS, name, subresource)


def core_path(namespace: str, kind: str, name: str = "", subresource: str = "") -> str:
    """Path of pods, events and so on; an empty namespace = all, or none for what has none."""
    return _path("/api/v1", namespace, kind, name, subresource)


def group_path(group: str, namespace: str, kind: str, name: str = "") -> str:
    """Path in an API group of Kubernetes' own, such as `coordination.k8s.io/v1`."""
    return _path(f"/apis/{group}", namespace, kind, name, "")


def _path(root: str, namespace: str, kind: str, name: str, subresource: str) -> str:
    scope = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{scope}/{kind}" + "".join(f"/{quote(part, safe='')}" for part in (name, subresource) if part)


def _refusal(status: int, content: bytes) -> InferenceRunError:
    try:
        found = json.loads(content)
        message = str(found.get("message") or found)
    except (ValueError, AttributeError):
        message = content[:300].decode(errors="replace").strip() or f"HTTP {status}"
    if status == 401:
        return Forbidden(status, f"the cluster does not know you ({message}); log in again, and try 'kubectl get pods'")
    if status == 403:
        return Forbidden(status, f"{message}; ask who administers the cluster for this right")
    if status == 404:
        return ObjectMissing(status, message)
    if status >= 500 or status == 429:
        return ApiUnreachable(f"the API server answered {status}: {message}; try again")
    return ApiRefused(status, message)
