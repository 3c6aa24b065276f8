"""A cluster by hand: `python -m tests.cluster --help`. See docs/testing-cluster.md."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster.binaries import find_binaries
from tests.cluster.cluster import KUBECONFIG_VARIABLE, Cluster
from tests.cluster.errors import ClusterError
from tests.cluster.images import TARGETS, build_images, pause_archive
from tests.cluster.packages import NODE_PACKAGES, ensure
from tests.cluster.paths import cache_directory
from tests.cluster.programs import say


def main() -> int:
    """Do what the command line says; the last line on standard output is the result."""
    arguments = _parser().parse_args()
    try:
        arguments.act(arguments)
    except ClusterError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _up(arguments: argparse.Namespace) -> None:
    begun = time.monotonic()
    cluster = Cluster(arguments.directory, nodes=arguments.nodes)
    cluster.up()
    say(f"up with {arguments.nodes} node{'s' * (arguments.nodes != 1)} after {time.monotonic() - begun:.0f} s")
    print(cluster.kubeconfig)  # noqa: T201


def _prepare(_: argparse.Namespace) -> None:
    if os.environ.get(KUBECONFIG_VARIABLE):
        say(f"nothing to make: {KUBECONFIG_VARIABLE} names a cluster")
        return
    find_binaries()
    ensure(NODE_PACKAGES)
    pause_archive()
    with tempfile.TemporaryDirectory() as scratch:
        build_images(Path(scratch))  # for their layers
    print(cache_directory())  # noqa: T201


def _down(arguments: argparse.Namespace) -> None:
    Cluster.attach(arguments.directory).down()
    shutil.rmtree(arguments.directory)


def _add_node(arguments: argparse.Namespace) -> None:
    print(Cluster.attach(arguments.directory).add_node())  # noqa: T201


def _set_gpus(arguments: argparse.Namespace) -> None:
    Cluster.attach(arguments.directory).set_gpus(arguments.node, arguments.count)


def _images(arguments: argparse.Namespace) -> None:
    cluster = Cluster.attach(arguments.directory)
    for archive in build_images(arguments.directory / "images", arguments.targets).values():
        cluster.load_image(archive)
        print(archive)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser("up", help="start a cluster; prints the path of its kubeconfig")
    up.add_argument("--nodes", type=int, default=1, help="default 1; 0 is an API server whose pods never run")
    down = commands.add_parser("down", help="end it, and leave nothing behind")
    add_node = commands.add_parser("add-node", help="start one more node; prints its name")
    set_gpus = commands.add_parser("set-gpus", help="let a node offer GPUs that are not there")
    set_gpus.add_argument("node")
    set_gpus.add_argument("count", type=int)
    images = commands.add_parser("images", help="build the project's images and load them into every node")
    images.add_argument("targets", nargs="*", default=TARGETS, help="default: all")
    prepare = commands.add_parser("prepare", help="make all that is made once, and print the folder that keeps it")
    prepare.set_defaults(act=_prepare)
    with_cluster = ((up, _up), (down, _down), (add_node, _add_node), (set_gpus, _set_gpus), (images, _images))
    for command, act in with_cluster:
        command.add_argument("--directory", type=Path, default=_default_directory(), help="default: %(default)s")
        command.set_defaults(act=act)
    return parser


def _default_directory() -> Path:
    return Path(tempfile.gettempdir(), "inferencerun-test-cluster")


if __name__ == "__main__":
    sys.exit(main())
