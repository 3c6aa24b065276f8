"""The one error of the harness."""

from __future__ import annotations


class ClusterError(RuntimeError):
    """The cluster cannot be built, started or changed as asked; the message says what is missing and what to do."""
