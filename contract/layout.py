"""Keys of one run under its output URI: build_* and parse_* side by side. Pure.

Keys are relative to `<output.uri>/`. A shard, epoch or number wider than its padding simply grows, so nothing runs out.
Each thing has one spelling: parse_* know only keys that build_* give back, so no object can be named in two ways.

    run.json                              identity and current generation, changed by conditional put
    coordinator.json                      who coordinates this output from one machine, changed by conditional put
    g0001/plan.json                       the shards, put if absent
    g0001/shards/00042.json               shard manifest
    g0001/data/00042/e0003-000007.pt      shard 42, epoch 3, checkpoint 7
    g0001/logs/POD-DIGEST.txt             the end of a failed worker's log, put if absent
    g0001/snapshots/NAME.json             a named, consistent cut over all shards
    g0001/index.json, g0001/_SUCCESS      written last
    .probe/NONCE/...                      scratch keys of the store probe
"""

from __future__ import annotations

import hashlib
import re

from contract.errors import Corrupt

RUN_KEY = "run.json"
COORDINATOR_KEY = "coordinator.json"
PROBE_PREFIX = ".probe/"

_GENERATION = re.compile(r"g(\d{4,})/")
_SHARD = re.compile(r"g(\d{4,})/shards/(\d{5,})\.json")
_DATA = re.compile(r"g(\d{4,})/data/(\d{5,})/e(\d{4,})-(\d{6,})\.pt")
_LOG = re.compile(r"g(\d{4,})/logs/([A-Za-z0-9._-]+)-[0-9a-f]{8}\.txt")
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


def build_generation_prefix(generation: int) -> str:
    """Prefix of everything that belongs to one generation."""
    return f"g{generation:04d}/"


def build_plan_key(generation: int) -> str:
    """Key of the plan."""
    return f"{build_generation_prefix(generation)}plan.json"


def build_shards_prefix(generation: int) -> str:
    """Prefix of all shard manifests; listing it gives every ETag."""
    return f"{build_generation_prefix(generation)}shards/"


def build_shard_key(generation: int, shard: int) -> str:
    """Key of a shard's manifest."""
    return f"{build_shards_prefix(generation)}{shard:05d}.json"


def parse_shard_key(key: str) -> tuple[int, int] | None:
    """(generation, shard) of a shard manifest's key, None for any other key."""
    match = _SHARD.fullmatch(key)
    if match is None:
        return None
    parsed = int(match[1]), int(match[2])
    return parsed if build_shard_key(*parsed) == key else None


def build_data_prefix(generation: int) -> str:
    """Prefix of all checkpoints of a generation."""
    return f"{build_generation_prefix(generation)}data/"


def build_shard_data_prefix(generation: int, shard: int) -> str:
    """Prefix of all checkpoints of one shard."""
    return f"{build_data_prefix(generation)}{shard:05d}/"


def build_data_key(generation: int, shard: int, epoch: int, number: int) -> str:
    """Key of a checkpoint. The epoch is in it, so a fenced writer can never overwrite another's bytes."""
    return f"{build_shard_data_prefix(generation, shard)}e{epoch:04d}-{number:06d}.pt"


def parse_data_key(key: str) -> tuple[int, int, int, int] | None:
    """(generation, shard, epoch, number) of a checkpoint's key, None for any other key."""
    match = _DATA.fullmatch(key)
    if match is None:
        return None
    parsed = int(match[1]), int(match[2]), int(match[3]), int(match[4])
    return parsed if build_data_key(*parsed) == key else None


def checked_data_key(key: str, *, generation: int, shard: int | None = None, where: str) -> str:
    """`key` if it is a checkpoint of this very generation and shard (None: of any shard).

    So a document that names keys can make nobody read or delete anything else.

    Raises:
        Corrupt: another shard's key, an absolute path, `..`, or no checkpoint key at all.
    """
    parsed = parse_data_key(key)
    if parsed is None or parsed[0] != generation or shard not in (None, parsed[1]):
        place = f"generation {generation}" if shard is None else f"generation {generation}, shard {shard}"
        raise Corrupt(f"{where}: names {key!r}, which is no checkpoint of {place}")
    return key


def build_logs_prefix(generation: int) -> str:
    """Prefix of the log tails of failed workers."""
    return f"{build_generation_prefix(generation)}logs/"


def build_log_key(generation: int, pod: str, uid: str) -> str:
    """Key of a worker's log tail: found from any attempt that names the worker, and by its name alone.

    The digest tells workers of one name apart; characters that do not belong in a key become `_`.
    """
    digest = hashlib.sha256(f"{pod}/{uid}".encode()).hexdigest()[:8]
    return f"{build_logs_prefix(generation)}{_UNSAFE.sub('_', pod)}-{digest}.txt"


def parse_log_key(key: str) -> tuple[int, str] | None:
    """(generation, worker's name) of a log tail's key, None for any other key. What did not belong in a key is `_`."""
    match = _LOG.fullmatch(key)
    if match is None:
        return None
    generation = int(match[1])
    return (generation, match[2]) if key.startswith(build_logs_prefix(generation)) else None


def build_index_key(generation: int) -> str:
    """Key of the index that readers start from."""
    return f"{build_generation_prefix(generation)}index.json"


def build_success_key(generation: int) -> str:
    """Key of the marker written last."""
    return f"{build_generation_prefix(generation)}_SUCCESS"


def build_snapshots_prefix(generation: int) -> str:
    """Prefix of the named snapshots."""
    return f"{build_generation_prefix(generation)}snapshots/"


def build_snapshot_key(generation: int, name: str) -> str:
    """Key of a snapshot; `name` must be a DNS-like label (ValueError otherwise)."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"snapshot name {name!r}: use lower-case letters, digits, '-' and '.', at most 63, e.g. 'before-upgrade'"
        )
    return f"{build_snapshots_prefix(generation)}{name}.json"


def parse_generation(key: str) -> int | None:
    """Generation a key belongs to, None outside all generations."""
    match = _GENERATION.match(key)
    if match is None:
        return None
    generation = int(match[1])
    return generation if key.startswith(build_generation_prefix(generation)) else None
