"""Where the harness keeps what it made once: binaries, the base root file system."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Our folder in the user's cache, made when missing."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(root) / "inferencerun-test-cluster"
    directory.mkdir(parents=True, exist_ok=True)
    return directory
