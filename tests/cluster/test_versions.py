"""What the harness can say without root: programs are checked before they are started, flags follow their version."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import machine, node
from tests.cluster.binaries import DIRECTORY_VARIABLES, Binaries, find_binaries
from tests.cluster.control_plane import _no_insecure_port
from tests.cluster.errors import ClusterError
from tests.cluster.images import _local_path
from tests.cluster.kubernetes_build import PROGRAMS
from tests.cluster.layout import Layout, NodeLayout, Ports

LAYOUT = Layout(
    directory=Path("/tmp/cluster"),
    number=180,
    ports=Ports(etcd_client=1, etcd_peer=2, apiserver=3, controller_manager=4, scheduler=5),
    token="secret",
)
NODE = NodeLayout(cluster=LAYOUT, name="node7", index=7, kubelet_port=6, healthz_port=8)


def binaries(minor: int) -> Binaries:
    """Programs of release 1.`minor`."""
    return Binaries(directory=Path("/opt/kubernetes"), etcd=Path("/usr/bin/etcd"), minor=minor)


def make_programs(directory: Path, versions: dict[str, str]) -> None:
    """Programs that tell a version and nothing else."""
    for name, version in versions.items():
        (directory / name).write_text(f"#!/bin/sh\necho Kubernetes {version}\n")
        (directory / name).chmod(0o755)


@pytest.fixture
def bin_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the environment names."""
    for name in DIRECTORY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBE_BIN_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("version", "minor"), [("v1.20.2", 20), ("v1.36.2", 36), ("v1.37.0-rc.1", 37)])
def test_the_version_is_read_off_the_programs(bin_directory: Path, version: str, minor: int) -> None:
    """The harness assumes no version: it asks."""
    make_programs(bin_directory, dict.fromkeys(PROGRAMS, version))
    found = find_binaries()

    assert found.minor == minor
    assert found.program("kubelet") == bin_directory / "kubelet"


def test_a_missing_program_is_named(bin_directory: Path) -> None:
    """A folder without the kubelet, such as one for API tests only, is refused with the name of what it lacks."""
    make_programs(bin_directory, dict.fromkeys(set(PROGRAMS) - {"kubelet"}, "v1.30.0"))

    with pytest.raises(ClusterError, match=r"lacks kubelet\."):
        find_binaries()


def test_programs_of_different_releases_are_refused(bin_directory: Path) -> None:
    """The flags of one release are not those of another."""
    make_programs(bin_directory, dict.fromkeys(PROGRAMS, "v1.30.0") | {"kubelet": "v1.29.0"})

    with pytest.raises(ClusterError, match="mixes releases"):
        find_binaries()


@pytest.mark.parametrize(
    ("minor", "by_flag", "by_config", "fails_on_cgroup_v1"),
    [(20, True, False, None), (26, True, False, None), (27, False, True, None), (36, False, True, False)],
)
def test_the_kubelet_is_told_its_runtime_as_its_release_wants_it(
    minor: int, *, by_flag: bool, by_config: bool, fails_on_cgroup_v1: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags up to 1.26, configuration from 1.27; permission for version 1 of control groups from 1.31."""
    monkeypatch.setattr(machine, "has_cgroup_v1", lambda: True)
    command = node._kubelet_command(NODE, binaries(minor))
    config: dict[str, Any] = node._kubelet_config(NODE, binaries(minor))

    assert ("--container-runtime=remote" in command) is by_flag
    assert ("containerRuntimeEndpoint" in config) is by_config
    assert config.get("failCgroupV1") is fails_on_cgroup_v1


def test_the_plain_port_is_closed_while_there_is_one() -> None:
    """Releases before 1.23 open a fixed port unless told not to; later ones refuse the flag."""
    assert _no_insecure_port(binaries(22)) == ["--port=0"]
    assert _no_insecure_port(binaries(23)) == []


def test_the_state_of_a_cluster_survives_its_file() -> None:
    """What `cluster.json` says is read back as it was written."""
    assert Layout.from_json(LAYOUT.to_json()) == LAYOUT


def test_names_fit_into_the_kernel() -> None:
    """The longest interface name has at most 15 characters."""
    last = dataclasses.replace(NODE, index=99, cluster=dataclasses.replace(LAYOUT, number=249))

    assert len(last.bridge) <= 15


@pytest.mark.parametrize(
    ("value", "is_index", "path"),
    [
        ("file:///srv/index/simple", True, Path("/srv/index")),
        ("/srv/wheels", False, Path("/srv/wheels")),
        ("file:///srv/with%20space", False, Path("/srv/with space")),
        ("https://index.example/simple", True, None),
        ("180", False, None),
    ],
)
def test_local_folders_in_the_settings_of_pip_are_found(value: str, *, is_index: bool, path: Path | None) -> None:
    """An image is built with the folders that pip reads on this machine; an index stands for its parent."""
    assert _local_path(value, is_index=is_index) == path
