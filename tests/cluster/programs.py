"""Other people's programs, run to their end, and lines that tell a person how far we are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.errors import ClusterError


def say(text: str) -> None:
    """One line of progress on standard error; standard output belongs to the results."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)  # noqa: T201 - a program for people


def run(*command: str | Path, environment: dict[str, str] | None = None, directory: Path | None = None) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        ClusterError: it failed; the message holds the command and the end of its output.
    """
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=directory,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        words = " ".join(str(word) for word in command)
        raise ClusterError(f"{words[:300]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


@contextmanager
def timed(title: str) -> Iterator[None]:
    """Say how many seconds the block took."""
    begun = time.monotonic()
    yield
    say(f"{title}: {time.monotonic() - begun:.1f} s")
