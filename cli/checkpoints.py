"""Checkpoints as a reader meets them: fetched, checked level by level, and put into input order.

The four levels are: not empty; of the size and sha256 that the manifest names; loadable by torch without pickle's code;
of shapes that agree. Only rows that pass all four leave this module.

Shapes: N records, R rows (N pooled, the sum of all lengths per token), D embedding width.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch

from contract.errors import Corrupt
from contract.manifest import Checkpoint, ShardManifest
from contract.run_record import RunRecord
from contract.settings import RowKind
from contract.store.commit import Committer
from contract.store.errors import NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The content of one checkpoint."""

    embeddings: torch.Tensor
    """[R, D]"""
    ids: list[str]
    ordinals: list[int]
    """Place of each record among all records of its shard, strictly increasing."""
    offsets: list[int]
    row_splits: list[int] | None
    """Per token: rows of record i are [row_splits[i], row_splits[i + 1]). None = one row each."""
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Records [start, end) of a checkpoint: a run that is adjacent in the input's order."""

    checkpoint: Checkpoint
    rows: Rows
    start: int
    end: int

    @property
    def embeddings(self) -> torch.Tensor:
        """The rows of these records."""
        splits = self.rows.row_splits
        if splits is None:
            return self.rows.embeddings[self.start : self.end]
        return self.rows.embeddings[splits[self.start] : splits[self.end]]

    @property
    def lengths(self) -> list[int] | None:
        """Per token: how many rows each record has."""
        splits = self.rows.row_splits
        return None if splits is None else [splits[i + 1] - splits[i] for i in range(self.start, self.end)]


def read_checkpoint(committer: Committer, item: Checkpoint) -> Rows:
    """The checkpoint's content, checked on all four levels.

    Raises:
        Corrupt: what is wrong, by key; `inferencerun verify --requeue` runs its records again.
    """
    return rows_of(fetched(committer, item), where=item.key)


def fetched(committer: Committer, item: Checkpoint) -> bytes:
    """Levels one and two: bytes that are there, not empty, and the very ones the manifest names. Raises Corrupt."""
    try:
        body = committer.read(item.key).body
    except NotFound as error:
        raise Corrupt(f"{item.key}: the object is missing") from error
    if not body:
        raise Corrupt(f"{item.key}: the object is empty")
    if len(body) != item.bytes:
        raise Corrupt(f"{item.key}: {len(body)} bytes, but the manifest says {item.bytes}")
    if hashlib.sha256(body).hexdigest() != item.sha256:
        raise Corrupt(f"{item.key}: the content does not match the manifest's sha256")
    return body


def rows_of(body: bytes, *, where: str) -> Rows:
    """Levels three and four: what torch loads from `body`, in shapes that agree. Raises Corrupt."""
    try:
        content = torch.load(BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise Corrupt(f"{where}: torch cannot load it ({error})") from error
    metadata = content.get("metadata") if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        raise Corrupt(f"{where}: not a checkpoint: no dict with embeddings, sequence_ids and metadata")
    embeddings, ids = content.get("embeddings"), content.get("sequence_ids")
    ordinals: Any = metadata.get("ordinals")
    offsets: Any = metadata.get("offsets")
    splits: Any = metadata.get("row_splits")
    problem = _shape_problem(embeddings, ids, ordinals, offsets, splits)
    if problem is not None:
        raise Corrupt(f"{where}: {problem}")
    return Rows(
        embeddings=embeddings,
        ids=ids,
        ordinals=ordinals.tolist(),
        offsets=offsets.tolist(),
        row_splits=None if splits is None else splits.tolist(),
        metadata=metadata,
    )


def _shape_problem(embeddings: Any, ids: Any, ordinals: Any, offsets: Any, splits: Any) -> str | None:
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        return "sequence_ids is not a list of strings"
    num_records = len(ids)
    if num_records == 0:
        return "it holds no record"
    for name, tensor, expected in (
        ("ordinals", ordinals, num_records),
        ("offsets", offsets, num_records),
        ("row_splits", splits, num_records + 1),
    ):
        if name == "row_splits" and tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.dtype is not torch.int64 or tensor.shape != (expected,):
            return f"{name} is not an int64 tensor of {expected} for {num_records} ids"
    if not isinstance(embeddings, torch.Tensor) or embeddings.dim() != 2:
        return "embeddings is not a 2-D tensor"
    if num_records > 1 and not bool((ordinals[1:] > ordinals[:-1]).all()):
        return "ordinals are not strictly increasing"
    if splits is not None and (int(splits[0]) != 0 or not bool((splits[1:] >= splits[:-1]).all())):
        return "row_splits do not start at 0 and grow"
    num_rows = num_records if splits is None else int(splits[-1])
    if embeddings.shape[0] != num_rows:
        return f"{embeddings.shape[0]} rows of embeddings for {num_rows} rows of {num_records} ids"
    if not embeddings.dtype.is_floating_point:
        return f"embeddings of {embeddings.dtype} are not floating point"
    # The extremes are NaN or infinite if any value is, and need no temporary of the embeddings' size.
    if embeddings.numel() and not all(bool(torch.isfinite(extreme)) for extreme in embeddings.aminmax()):
        bad_rows = torch.nonzero(~torch.isfinite(embeddings).all(dim=1))
        return f"row {int(bad_rows[0])} of embeddings is not finite ({len(bad_rows)} such rows)"
    return None


def metadata_problems(rows: Rows, item: Checkpoint, manifest: ShardManifest, record: RunRecord) -> list[str]:
    """Where the checkpoint's own account of itself differs from the manifest's or the run's. Pure."""
    said = rows.metadata
    wanted: dict[str, object] = {
        "run": record.name,
        "generation": manifest.generation,
        "shard": manifest.shard,
        "epoch": item.epoch,
        "number": item.number,
        "object": manifest.object,
        "model": record.model.name,
        "dtype": record.model.dtype,
        "kind": record.model.kind,
    }
    problems = [
        f"metadata says {name} {said.get(name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if said.get(name) != value
    ]
    if f"torch.{record.model.dtype}" != str(rows.embeddings.dtype):
        problems.append(f"embeddings are {rows.embeddings.dtype}, but the run stores {record.model.dtype}")
    if len(rows.ids) != item.records:
        problems.append(f"{len(rows.ids)} records, but the manifest says {item.records}")
    if rows.ordinals[0] < item.first or rows.ordinals[-1] >= item.next:
        problems.append(
            f"ordinals {rows.ordinals[0]} to {rows.ordinals[-1]} lie outside the manifest's [{item.first}, {item.next})"
        )
    if (rows.row_splits is not None) != (record.model.kind == RowKind.PER_TOKEN):
        problems.append(f"row_splits and the run's kind, {record.model.kind}, do not go together")
    return problems


def in_input_order(checkpoints: Iterable[Checkpoint], load: Callable[[Checkpoint], Rows | None]) -> Iterator[Piece]:
    """All records of one shard as runs in the order of their ordinals.

    A checkpoint is loaded when its first ordinal is reached and dropped after its last, so there is one in memory, or two
    where a record that was quarantined at first got its own checkpoint later, inside the range of an older one.

    Args:
        checkpoints: the shard's, in any order.
        load: the content; None = leave this checkpoint out.
    """
    waiting = sorted(checkpoints, key=lambda item: item.first, reverse=True)
    entered: list[Piece] = []  # each with `start` at its next record and `end` at its last
    while waiting or entered:
        lowest = min(entered, key=_next_ordinal, default=None)
        if waiting and (lowest is None or waiting[-1].first <= _next_ordinal(lowest)):
            item = waiting.pop()
            rows = load(item)
            if rows is not None:
                entered.append(Piece(checkpoint=item, rows=rows, start=0, end=len(rows.ids)))
            del rows  # or it would stay in memory while the next one is loaded
            continue
        assert lowest is not None  # nothing waits, so something is entered
        entered = [piece for piece in entered if piece is not lowest]
        limits = [_next_ordinal(other) for other in entered]
        if waiting:
            limits.append(waiting[-1].first)
        end = bisect_left(lowest.rows.ordinals, min(limits), lowest.start + 1) if limits else lowest.end
        yield Piece(checkpoint=lowest.checkpoint, rows=lowest.rows, start=lowest.start, end=end)
        if end < lowest.end:
            entered.append(Piece(checkpoint=lowest.checkpoint, rows=lowest.rows, start=end, end=lowest.end))


def _next_ordinal(piece: Piece) -> int:
    return piece.rows.ordinals[piece.start]
