"""Kubernetes built from Debian's source package, for machines where no binaries are at hand.

Debian 12 ships the sources of 1.20.2 with everything vendored, and a Go compiler, but not the server's programs. Four
things need care:

* The tree builds in GOPATH mode only: in module mode `go` wants to update `go.mod`.
* `zz_generated.openapi.go` is not in the tree: the vendored generator writes it.
* The vendored `reflect2` 1.0.1 crashes the API server under Go 1.18 and newer, after minutes of use. Debian's own
  package of it (1.0.2) takes its place.
* The version is set at link time; else the server calls itself `v0.0.0-master`, and Helm refuses charts that name the
  versions they work with.

About nine minutes of processor time and 4 GB of disk while it runs; the binaries take 400 MB.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

from tests.cluster.errors import ClusterError
from tests.cluster.packages import BUILD_PACKAGES, codename, debian_repositories, ensure
from tests.cluster.paths import cache_directory
from tests.cluster.programs import run, say, timed

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")

_IMPORT_PATH = "k8s.io/kubernetes"
_REFLECT2 = Path("/usr/share/gocode/src/github.com/modern-go/reflect2")
_OPENAPI_MARKER = re.compile(rb"\+k8s:openapi-gen=")
# Their types are no part of the server's API, and the generator stops at them.
_NOT_SERVED = ("code-generator", "sample-apiserver")


def built_binaries() -> Path:
    """The folder of the cached build, built first when it is not there.

    Raises:
        ClusterError: this machine cannot build it; the message says what else to do.
    """
    cache = cache_directory() / "kubernetes-1.20"
    with (cache_directory() / "kubernetes-1.20.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second harness waits for the first one's build
        if not all((cache / program).exists() for program in PROGRAMS):
            _build(cache)
    return cache


def _build(cache: Path) -> None:
    if codename() != "bookworm":
        raise ClusterError(
            "Only Debian 12 has a source package that this harness can build. Set KUBE_BIN_DIR to a folder with "
            f"{', '.join(PROGRAMS)} and etcd, or E2E_KUBECONFIG to a cluster."
        )
    ensure(BUILD_PACKAGES)
    say("building Kubernetes from Debian's source package, once: about nine minutes of processor time")
    with tempfile.TemporaryDirectory(prefix="inferencerun-kubernetes-") as scratch_name:
        scratch = Path(scratch_name)
        # Not a link: the generator resolves vendored packages by where the tree really is.
        tree = scratch / "go" / "src" / _IMPORT_PATH
        with timed("fetching Debian's source package of Kubernetes"):
            _unpack_source(scratch, tree)
        version = _upstream_version(tree)
        _replace_reflect2(tree)
        environment = {
            "GOPATH": str(scratch / "go"),
            "GOCACHE": str(scratch / "go-build"),
            "GO111MODULE": "off",
            "CGO_ENABLED": "0",
            "GOFLAGS": "",
        }
        with timed("generating the OpenAPI definitions"):
            _generate_openapi(tree, scratch, environment)
        made = scratch / "made"
        made.mkdir()
        for program in PROGRAMS:
            with timed(f"building {program} {version}"):
                package = f"{_IMPORT_PATH}/cmd/{program}"
                flags = f"-s -w {_version_flags(version)}"
                run("go", "build", "-ldflags", flags, "-o", made / program, package, environment=environment)
        cache.mkdir(exist_ok=True)
        for program in PROGRAMS:
            # Renamed within the cache, so that a harness which dies here leaves no half of a program.
            shutil.move(made / program, cache / f"{program}.new")
            (cache / f"{program}.new").rename(cache / program)


def _unpack_source(scratch: Path, tree: Path) -> None:
    """Put the source package into `tree`, fetched with our own sources list: the machine's apt settings stay as they are."""
    apt = scratch / "apt"
    (apt / "lists" / "partial").mkdir(parents=True)
    repositories = [row for row in debian_repositories() if row[1] == "bookworm"]
    lines = [f"deb-src {uri} {suite} {component}\n" for uri, suite, component in repositories]
    (apt / "sources.list").write_text("".join(lines), encoding="utf-8")
    options = (
        "-qq",
        f"-oDir::Etc::sourcelist={apt}/sources.list",
        "-oDir::Etc::sourceparts=/dev/null",
        f"-oDir::State::Lists={apt}/lists",
        "-oAPT::Sandbox::User=root",  # the scratch folder is ours alone
    )
    run("apt-get", *options, "update")
    run("apt-get", *options, "source", "--download-only", "kubernetes", directory=scratch)
    description = next(scratch.glob("kubernetes_*.dsc"))
    tree.parent.mkdir(parents=True)
    run("dpkg-source", "--extract", description, tree, directory=scratch)


def _upstream_version(tree: Path) -> str:
    """`1.20.2` out of Debian's `1.20.5+really1.20.2-1.1`."""
    changelog = (tree / "debian" / "changelog").read_text(encoding="utf-8")
    found = re.match(r"kubernetes \((?:.*really)?(\d+\.\d+\.\d+)", changelog)
    if found is None:
        raise ClusterError(f"no version of Kubernetes in {changelog.splitlines()[0]!r}")
    return found.group(1)


def _version_flags(version: str) -> str:
    major, minor, _ = version.split(".")
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    packages = ("component-base/version", "client-go/pkg/version")
    return " ".join(
        f"-X {_IMPORT_PATH}/vendor/k8s.io/{package}.{name}={value}"
        for package in packages
        for name, value in values.items()
    )


def _replace_reflect2(tree: Path) -> None:
    vendored = tree / "vendor" / "github.com" / "modern-go" / "reflect2"
    shutil.rmtree(vendored)
    shutil.copytree(_REFLECT2, vendored)


def _generate_openapi(tree: Path, scratch: Path, environment: dict[str, str]) -> None:
    generator = scratch / "openapi-gen"
    run(
        "go",
        "build",
        "-o",
        generator,
        f"{_IMPORT_PATH}/vendor/k8s.io/kube-openapi/cmd/openapi-gen",
        environment=environment,
    )
    packages = [f"{_IMPORT_PATH}/{package}" for package in sorted(_openapi_packages(tree))]
    run(
        generator,
        "--logtostderr",
        f"--go-header-file={tree}/hack/boilerplate/boilerplate.generatego.txt",
        f"--output-base={scratch}/go/src",
        f"--report-filename={scratch}/violations",
        "--output-file-base=zz_generated.openapi",
        f"--output-package={_IMPORT_PATH}/pkg/generated/openapi",
        f"--input-dirs={','.join(packages)}",
        environment=environment,
        directory=tree,
    )


def _openapi_packages(tree: Path) -> set[str]:
    """Every package that carries the generator's marker, as a path inside the tree. The links in `vendor` are followed."""
    found = set()
    for top in ("pkg", "cmd", "plugin", "vendor/k8s.io"):
        for directory, subdirectories, files in os.walk(tree / top, followlinks=True):
            subdirectories[:] = [name for name in subdirectories if name not in _NOT_SERVED]
            sources = (Path(directory) / name for name in files if name.endswith(".go"))
            if any(_OPENAPI_MARKER.search(source.read_bytes()) for source in sources):
                found.add(str(Path(directory).relative_to(tree)))
    return found
