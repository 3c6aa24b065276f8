"""Which Kubernetes programs the cluster runs, and of which version they are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import ClusterError
from tests.cluster.kubernetes_build import PROGRAMS, built_binaries
from tests.cluster.programs import run

# The second is the name that the envtest tool of the Kubernetes project uses.
DIRECTORY_VARIABLES = ("KUBE_BIN_DIR", "KUBEBUILDER_ASSETS")
_DEBIAN_ETCD = Path("/usr/bin/etcd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """The programs of one release. Flags that depend on the version are chosen by `minor`; the major version is 1."""

    directory: Path
    etcd: Path
    minor: int

    def program(self, name: str) -> Path:
        """Path of `kube-apiserver`, `kubelet` and so on."""
        return self.directory / name


def find_binaries() -> Binaries:
    """The programs named by the environment, else our cached build, else a new build (minutes, once).

    Raises:
        ClusterError: the folder that the environment names lacks a program, or nothing can be built here.
    """
    given = next((os.environ[name] for name in DIRECTORY_VARIABLES if os.environ.get(name)), None)
    directory = Path(given).absolute() if given else built_binaries()
    missing = [program for program in PROGRAMS if not (directory / program).exists()]
    if missing:
        raise ClusterError(
            f"{directory} lacks {', '.join(missing)}. Put these programs of one release there, or unset "
            f"{' and '.join(DIRECTORY_VARIABLES)} to build them."
        )
    etcd = directory / "etcd"
    versions = {program: _minor_version(directory / program) for program in PROGRAMS}
    if len(set(versions.values())) > 1:
        raise ClusterError(f"{directory} mixes releases: minor versions {versions}")
    minor = versions[PROGRAMS[0]]
    return Binaries(directory=directory, etcd=etcd if etcd.exists() else _DEBIAN_ETCD, minor=minor)


def _minor_version(program: Path) -> int:
    answer = run(program, "--version")
    found = re.search(r"v1\.(\d+)\.", answer)
    if found is None:
        raise ClusterError(f"{program} --version says {answer!r}: no release of Kubernetes 1")
    return int(found.group(1))
