"""Tests of the plug-in's access to the API server: what each way of not getting an answer becomes."""

from __future__ import annotations

import pytest
from aiohttp import web

from cli.kubectl.api import ApiRefused, ApiUnreachable, Forbidden, ObjectMissing, connect, run_path
from contract.errors import SpecError
from contract.names import ExitCode
from tests.cli.kubectl.cluster import NAMESPACE, FakeCluster
from tests.controller.api_server import refusal


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, Forbidden, "log in again"),
        (403, Forbidden, "administers the cluster"),
        (404, ObjectMissing, "said so"),
        (422, ApiRefused, "said so"),
        (429, ApiUnreachable, "try again"),
        (503, ApiUnreachable, "try again"),
    ],
)
def test_a_refusal_says_what_to_do(cluster: FakeCluster, status: int, kind: type[Exception], words: str) -> None:
    """With the server's own words in it."""
    cluster.server.fault = lambda _method, _path: refusal(status, "Reason", "the server said so")

    with pytest.raises(kind, match=words) as caught:
        connect(cluster.kubeconfig).get(run_path("default", "x"))

    assert "the server said so" in str(caught.value)


def test_an_answer_that_is_no_json(cluster: FakeCluster) -> None:
    """A proxy's page is no object, and no error's message either."""
    api = connect(cluster.kubeconfig)
    cluster.server.fault = lambda _method, _path: web.Response(text="<html>log in</html>")
    with pytest.raises(ApiUnreachable):
        api.get(run_path("default", "x"))
    cluster.server.fault = lambda _method, _path: web.Response(status=302, text="<html>log in</html>")
    with pytest.raises(ApiRefused, match="log in"):
        api.get(run_path("default", "x"))


def test_a_server_that_is_not_there(cluster: FakeCluster) -> None:
    """One line with its address, and the exit code of what may pass."""
    cluster.kubeconfig.write_text(cluster.kubeconfig.read_text().replace(cluster.server.url, "http://127.0.0.1:9"))

    result = cluster.run("status", "swissprot")

    assert result.exit_code == ExitCode.TRANSIENT
    assert "the API server http://127.0.0.1:9 does not answer" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_token_and_the_namespace_of_the_context_are_used(cluster: FakeCluster) -> None:
    """As kubectl does."""
    seen: list[str | None] = []
    usual = cluster.server.usual

    async def noting(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return await usual(request)

    cluster.server.usual = noting  # type: ignore[method-assign]
    cluster.apply()

    cluster.run("status", "swissprot")

    assert connect(cluster.kubeconfig).default_namespace == NAMESPACE
    assert set(seen) == {"Bearer secret"}


def test_a_pod_without_a_service_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told what is missing."""
    monkeypatch.setenv("KUBECONFIG", "/nowhere/at/all")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")

    with pytest.raises(SpecError, match="service account"):
        connect()
