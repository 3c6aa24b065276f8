"""JSON documents with a kind, a format version and a checksum over their own canonical bytes. Pure.

Canonical JSON (sorted keys, no spaces) makes equal values equal bytes, so whoever writes a plan writes the same bytes,
and a resend after an unknown outcome is the same put. The checksum turns silent corruption into a named error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from contract.errors import Corrupt, NewerFormat

Migration = Callable[[dict[str, Any]], dict[str, Any]]


def canonical(fields: Mapping[str, Any]) -> bytes:
    """Canonical JSON bytes of `fields`."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def encode(kind: str, version: int, fields: Mapping[str, Any]) -> bytes:
    """The document as stored: `fields` with `kind`, `formatVersion` and `checksum` (sha256, hex)."""
    body = {**fields, "kind": kind, "formatVersion": version}
    return canonical({**body, "checksum": hashlib.sha256(canonical(body)).hexdigest()}) + b"\n"


def decode(
    kind: str,
    version: int,
    body: bytes,
    *,
    where: str,
    migrations: Mapping[int, Migration] | None = None,
) -> dict[str, Any]:
    """The fields of a stored document, brought up to `version`.

    Args:
        kind: what the document must be.
        version: the newest format version the caller understands.
        body: stored bytes.
        where: key or path, for messages.
        migrations: step from each older version to the next one.

    Raises:
        Corrupt: not JSON, wrong kind, or the checksum does not match.
        NewerFormat: written by a newer version.
    """
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise Corrupt(f"{where}: not JSON ({error}); {_remedy(kind)}") from error
    if not isinstance(fields, dict) or fields.get("kind") != kind:
        raise Corrupt(f"{where}: not a {kind} document; {_remedy(kind)}")
    found = fields.get("formatVersion")
    if not isinstance(found, int) or found < 1:
        raise Corrupt(f"{where}: formatVersion {found!r} is not a positive number; {_remedy(kind)}")
    if found > version:
        raise NewerFormat(
            f"{where}: format version {found} of {kind} is newer than {version}: upgrade this installation"
        )
    checksum = fields.pop("checksum", None)
    try:
        is_intact = checksum == hashlib.sha256(canonical(fields)).hexdigest()
    except ValueError:  # NaN or a lone surrogate: JSON for Python, and nothing that `encode` can have written
        is_intact = False
    if not is_intact:
        raise Corrupt(f"{where}: checksum does not match the content; {_remedy(kind)}")
    while found < version:
        if migrations is None or found not in migrations:
            raise Corrupt(f"{where}: no migration of {kind} from format version {found}")
        fields = migrations[found](fields)
        found += 1
    return dict(fields)


@contextmanager
def reading_fields(kind: str, *, where: str) -> Iterator[None]:
    """Turn a missing or misspelt field of a decoded document into Corrupt: intact, but written by something else."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{where}: the {kind} lacks or misspells a field ({error!r}); {_remedy(kind)}") from error


def _remedy(kind: str) -> str:
    if kind == "ShardManifest":
        return (
            "run 'inferencerun repair OUTPUT_URI --shard N' to set this shard back to unclaimed (its records run again)"
        )
    return "restore the object from a backup or object version, or start a new generation with --restart"
