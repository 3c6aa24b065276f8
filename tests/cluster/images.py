"""Images without a registry: the pause image, a base with Python, the project's own from its Dockerfile.

All are docker archives, which every containerd imports. The first two are made by hand: an image of one layer is a tar
file with two small JSON documents beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tests.cluster.errors import ClusterError
from tests.cluster.node import PAUSE_IMAGE
from tests.cluster.packages import COMPILER_PACKAGES, IMAGE_PACKAGES, codename, debian_repositories, ensure
from tests.cluster.paths import cache_directory
from tests.cluster.programs import run, say, timed

BASE_IMAGE = "inferencerun.test/python:1"
BUILD_IMAGE = "inferencerun.test/python-venv:1"
TARGETS = ("controller", "worker")

_PROJECT = Path(__file__).resolve().parents[2]
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Sleeps until told to stop, and collects the orphans of its pod.
_PAUSE_SOURCE = """
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void stop(int number) { (void)number; _exit(0); }
static void collect(int number) { (void)number; while (waitpid(-1, NULL, WNOHANG) > 0) {} }
int main(void) {
    signal(SIGINT, stop);
    signal(SIGTERM, stop);
    signal(SIGCHLD, collect);
    for (;;) pause();
}
"""
# Debian packages of the images that the project's own are made from; the second only builds and is left behind.
_PACKAGES = {BASE_IMAGE: ("python3", "ca-certificates"), BUILD_IMAGE: ("python3", "python3-venv", "ca-certificates")}


def pause_archive() -> Path:
    """The archive of `PAUSE_IMAGE`, made once."""
    archive = cache_directory() / "pause.tar"
    with _locked("pause"):
        if not archive.exists():
            ensure(COMPILER_PACKAGES)
            with tempfile.TemporaryDirectory() as scratch:
                source, program, layer = (Path(scratch, name) for name in ("pause.c", "pause", "layer.tar"))
                source.write_text(_PAUSE_SOURCE, encoding="ascii")
                run("gcc", "-static", "-Os", "-s", "-o", program, source)
                with tarfile.open(layer, "w") as tar:
                    tar.add(program, "pause")
                _write_archive(archive, PAUSE_IMAGE, layer, {"Entrypoint": ["/pause"], "User": "65535:65535"})
    return archive


def base_archive(name: str = BASE_IMAGE) -> Path:
    """The archive of `BASE_IMAGE` or `BUILD_IMAGE`, a minimal Debian with Python, made once (20 s to 2 min)."""
    suite = codename()
    archive = cache_directory() / f"{name.rpartition('/')[2].replace(':', '-')}-{suite}.tar"
    with _locked(archive.stem):
        if not archive.exists():
            ensure(IMAGE_PACKAGES)
            say(f"making the root file system of {name} ...")
            sources = "".join(f"deb {uri} {of} {component}\n" for uri, of, component in debian_repositories())
            with tempfile.TemporaryDirectory() as scratch:
                layer = Path(scratch, "layer.tar")
                _bootstrap(suite, _PACKAGES[name], sources, layer)
                _write_archive(archive, name, layer, {"Cmd": ["python3"], "Env": [f"PATH={_PATH}"]})
    return archive


def build_images(directory: Path, targets: Iterable[str] = TARGETS) -> dict[str, Path]:
    """Build targets of the project's Dockerfile on `BASE_IMAGE`; returns target -> archive, in `directory`.

    The images are named `inferencerun.test/TARGET:test` (`image_name`). Installing packages in the build goes through
    this machine's pip configuration, local folders of packages included.

    Raises:
        ClusterError: no Dockerfile, or the build failed; the message holds the end of its output.
    """
    if not (_PROJECT / "Dockerfile").exists():
        raise ClusterError(f"{_PROJECT} has no Dockerfile to build images from")
    ensure(IMAGE_PACKAGES)
    directory.mkdir(parents=True, exist_ok=True)
    archives = {}
    arguments = ("--build-arg", f"BASE_IMAGE={BASE_IMAGE}", "--build-arg", f"BUILD_IMAGE={BUILD_IMAGE}")
    with _locked("image-layers"), tempfile.TemporaryDirectory(prefix="inferencerun-images-") as scratch_name:
        scratch = Path(scratch_name)
        storage = _layer_storage()
        buildah = ("buildah", "--root", str(storage), "--runroot", str(scratch / "run"))
        environment = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": _storage_driver(storage)}
        for base in (BASE_IMAGE, BUILD_IMAGE):
            run(*buildah, "pull", "--quiet", f"docker-archive:{base_archive(base)}", environment=environment)
        volumes = _pip_volumes(scratch / "pip.conf")
        for target in targets:
            name = image_name(target)
            archive = directory / f"{target}.tar"
            archive.unlink(missing_ok=True)
            with timed(f"building image {target}"):
                run(
                    *(*buildah, "build", "--layers", "--pull-never", *arguments, *volumes),
                    *("--target", target, "--tag", name, _PROJECT),
                    environment=environment,
                )
            run(*buildah, "push", name, f"docker-archive:{archive}:{name}", environment=environment)
            archives[target] = archive
    return archives


def image_name(target: str) -> str:
    """What pods call the image of a target; `imagePullPolicy: Never` or `IfNotPresent`."""
    return f"inferencerun.test/{target}:test"


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# Layers of earlier builds are kept, so that only what changed is built again. A set of them takes 2 GB.
_MAX_LAYER_BYTES = 10 << 30


def _layer_storage() -> Path:
    """Where buildah keeps layers between builds; emptied when it has grown too large."""
    storage = cache_directory() / "image-layers"
    if storage.exists() and int(run("du", "--summarize", "--bytes", storage).split()[0]) > _MAX_LAYER_BYTES:
        shutil.rmtree(storage)
    storage.mkdir(exist_ok=True)
    return storage


def _storage_driver(storage: Path) -> str:
    """Overlay mounts, or, within a container whose root is an overlay itself, copies."""
    kind = run("stat", "--file-system", "--format=%T", storage).strip()
    return "vfs" if kind == "overlayfs" else "overlay"


def _bootstrap(suite: str, packages: Iterable[str], sources: str, layer: Path) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    # What no container reads: a third of the size.
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "info", "locale")]
    done = subprocess.run(
        [*command, suite, str(layer), "-"], input=sources, text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise ClusterError(f"mmdebstrap ended with {done.returncode}:\n{done.stderr[-3000:]}")


def _write_archive(archive: Path, name: str, layer: Path, config: dict[str, object]) -> None:
    """Write a docker archive of one layer, under its final name only when it is whole."""
    with layer.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    image = {
        "architecture": _ARCHITECTURES.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "tests/cluster"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    unfinished = archive.with_suffix(".new")
    with tarfile.open(unfinished, "w") as tar:
        for file_name, document in (("config.json", image), ("manifest.json", manifest)):
            content = json.dumps(document).encode()
            entry = tarfile.TarInfo(file_name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        tar.add(layer, "layer.tar")
    unfinished.rename(archive)


def _pip_volumes(configuration: Path) -> list[str]:
    """`--volume` options that give the build this machine's pip settings and every local folder that they name."""
    settings = _pip_settings()
    lines = ["[global]", *(f"{name} = {' '.join(values)}" for name, values in settings.items())]
    configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
    paths = {_local_path(value, is_index="index" in name) for name, values in settings.items() for value in values}
    existing = sorted(path for path in paths if path is not None and path.exists())
    # A folder within another one is there already, and a mount below a read-only mount would fail.
    tops = [path for path in existing if not any(other in path.parents for other in existing)]
    mounts = [(configuration, Path("/etc/pip.conf")), *((path, path) for path in tops)]
    return [word for source, target in mounts for word in ("--volume", f"{source}:{target}:ro")]


def _pip_settings() -> dict[str, list[str]]:
    """What pip is set to by all its files and by the environment; a later source wins, as in pip."""
    settings: dict[str, list[str]] = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, quoted = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in {"global", "install", ":env:"} and option != "cache-dir":
            settings[option] = quoted.strip("'\"").replace("\\n", " ").split()
    return settings


def _local_path(value: str, *, is_index: bool) -> Path | None:
    parts = urlsplit(value)
    path = Path(url2pathname(parts.path))
    if parts.scheme not in {"", "file"} or not path.is_absolute():
        return None
    return path.parent if is_index else path  # the pages of an index link to files beside it


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One process at a time makes the thing called `name`; the others wait for it."""
    with (cache_directory() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
