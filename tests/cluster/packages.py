"""Debian packages that the harness needs, installed when missing.

Only here is the machine's package manager called. Everything is asked of it by package name, from the sources that the
machine already has; nothing is added to its configuration.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.errors import ClusterError
from tests.cluster.paths import cache_directory
from tests.cluster.programs import run, say

# What a running cluster needs -> the program that shows it is there.
NODE_PACKAGES = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "etcd-server": "/usr/bin/etcd",
    "iproute2": "/usr/sbin/ip",
    "mount": "/usr/bin/mount",
    "openssl": "/usr/bin/openssl",
    "socat": "/usr/bin/socat",
    "util-linux": "/usr/bin/unshare",
}
COMPILER_PACKAGES = {"gcc": "/usr/bin/gcc", "libc6-dev": "/usr/include/stdlib.h"}
BUILD_PACKAGES = {
    "dpkg-dev": "/usr/bin/dpkg-source",
    "golang-go": "/usr/bin/go",
    "golang-github-modern-go-reflect2-dev": "/usr/share/gocode/src/github.com/modern-go/reflect2/reflect2.go",
}
IMAGE_PACKAGES = {"buildah": "/usr/bin/buildah", "mmdebstrap": "/usr/bin/mmdebstrap"}


def ensure(*groups: dict[str, str]) -> None:
    """Install what is missing of `groups` (package -> a file of it).

    Raises:
        ClusterError: not a Debian machine, not root, or the installation failed.
    """
    if not _missing(groups):
        return
    with (cache_directory() / "packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # apt gives up at once when another harness holds its lock
        missing = _missing(groups)
        if not missing:
            return
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            raise ClusterError(
                f"missing: {', '.join(missing)}. These are Debian packages: install them, or run as root on Debian."
            )
        say(f"installing {', '.join(missing)}")
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "-qq", "update", environment=quiet)
        run("apt-get", "-qq", "install", "--yes", "--no-install-recommends", *missing, environment=quiet)
        if left := _missing(groups):
            raise ClusterError(f"installed, and yet not there: {', '.join(left)}. Is this Debian 12?")


def codename() -> str:
    """The release of this machine, such as `bookworm`; empty when it does not say."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line).get("VERSION_CODENAME", "").strip('"')


def debian_repositories() -> list[tuple[str, str, str]]:
    """(URI, suite, component) of each Debian repository that this machine is set up with.

    Raises:
        ClusterError: it has none.
    """
    listing = run(
        "apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)", _PACKAGES_ONLY
    )
    rows = [line.split("|") for line in listing.splitlines()]
    found = sorted({(uri, suite, component) for origin, uri, suite, component in rows if origin == "Debian"})
    if not found:
        raise ClusterError("apt knows no Debian repository here: `apt-get update` must work, on Debian 12")
    return found


_PACKAGES_ONLY = "Created-By: Packages"


def _missing(groups: Iterable[dict[str, str]]) -> list[str]:
    return sorted(package for group in groups for package, file in group.items() if not Path(file).exists())
