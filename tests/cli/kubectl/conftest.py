"""A cluster for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.kubectl.cluster import FakeCluster, fake_cluster


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """An empty cluster; no other is in reach."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with fake_cluster(tmp_path) as found:
        yield found
