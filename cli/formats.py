"""One writer per file format of `export`: each takes parts in input order and never holds more than one of them.

What a format wants at the front and only the end knows (the number of rows) is left out at first: the header's place is
kept free and filled in last. Only `.pt` cannot be streamed in one pass, since torch writes a tensor whole: its rows go to
a scratch file, which torch then writes out of a memory map.

Shapes: N records, R rows (N pooled, the sum of all lengths per token), D embedding width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

ROW_GROUP_BYTES = 8 << 20
"""Of a Parquet file: large enough to scan fast, small enough to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known before the first row."""

    num_records: int
    width: int
    """D; 0 when there is no record."""
    dtype: torch.dtype
    is_per_token: bool
    about: dict[str, Any]
    """Run, generation, model and so on: text and numbers for the file's metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Adjacent records of one input object."""

    embeddings: torch.Tensor
    """[R, D]"""
    ids: Sequence[str]
    object: str
    offsets: Sequence[int]
    lengths: Sequence[int] | None
    """Per token: rows of each record; None = one each."""


class Writer(Protocol):
    """Writes one export, as one file or several in one directory."""

    def add(self, part: Part) -> None:
        """Append records."""
        ...

    def close(self) -> None:
        """Write what only the end knows, and close all files."""
        ...


class NpyWriter:
    """`.npy`: a plain array [R, D]; ids in `.ids.jsonl`; per token, int64 [N + 1] in `.row_splits.npy`."""

    def __init__(self, path: Path, facts: Facts) -> None:
        self._rows = _NpyFile(path, columns=facts.width, dtype=_numpy_dtype(facts.dtype))
        self._ids = _IdsFile(path)
        self._splits = None
        if facts.is_per_token:
            self._splits = _NpyFile(_beside(path, ".row_splits.npy"), columns=None, dtype=np.dtype(np.int64))
            self._splits.append(np.zeros(1, np.int64))
        self._num_rows = 0

    def add(self, part: Part) -> None:
        """Append records."""
        self._rows.append(_numpy_values(part.embeddings))
        self._ids.append(part)
        if self._splits is not None and part.lengths is not None:
            self._splits.append(self._num_rows + np.cumsum(part.lengths, dtype=np.int64))
        self._num_rows += len(part.embeddings)

    def close(self) -> None:
        """Write the headers."""
        self._rows.close()
        self._ids.close()
        if self._splits is not None:
            self._splits.close()


class SafetensorsWriter:
    """`.safetensors`: `offsets` int64 [N], per token `row_splits` int64 [N + 1], `embeddings` [R, D]; ids in `.ids.jsonl`.

    The format is 8 bytes of header length, a JSON header, and the tensors' bytes without a gap. The int64 tensors go
    first, where they stay aligned whatever the rows' width.
    Source: https://github.com/huggingface/safetensors#format
    """

    _NAMES: ClassVar = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}

    def __init__(self, path: Path, facts: Facts) -> None:
        self._facts = facts
        self._ids = _IdsFile(path)
        self._file = path.open("wb")
        self._num_rows = 0
        # As long as it could ever get, so that it can be written last; readers allow blanks behind it.
        self._header_bytes = -(-len(self._header(num_rows=10**18)) // 8) * 8
        self._offsets_at = 8 + self._header_bytes
        self._splits_at = self._offsets_at + 8 * facts.num_records
        self._rows_at = self._splits_at + (8 * (facts.num_records + 1) if facts.is_per_token else 0)
        if facts.is_per_token:
            self._splits_at = self._write(self._splits_at, np.zeros(1, np.int64))

    def add(self, part: Part) -> None:
        """Append records: each tensor has its own place in the file."""
        self._ids.append(part)
        self._offsets_at = self._write(self._offsets_at, np.asarray(part.offsets, np.int64))
        if part.lengths is not None:
            self._splits_at = self._write(self._splits_at, self._num_rows + np.cumsum(part.lengths, dtype=np.int64))
        self._rows_at = self._write(self._rows_at, _raw(part.embeddings))
        self._num_rows += len(part.embeddings)

    def close(self) -> None:
        """Write the header."""
        self._file.seek(0)
        self._file.write(self._header_bytes.to_bytes(8, "little"))
        self._file.write(self._header(num_rows=self._num_rows).ljust(self._header_bytes))
        self._file.close()
        self._ids.close()

    def _write(self, position: int, values: np.ndarray[Any, Any]) -> int:
        self._file.seek(position)
        self._file.write(values.data)
        return position + values.nbytes

    def _header(self, *, num_rows: int) -> bytes:
        facts = self._facts
        shapes: dict[str, tuple[str, int, list[int]]] = {"offsets": ("I64", 8, [facts.num_records])}
        if facts.is_per_token:
            shapes["row_splits"] = ("I64", 8, [facts.num_records + 1])
        shapes["embeddings"] = (self._NAMES[facts.dtype], facts.dtype.itemsize, [num_rows, facts.width])
        fields: dict[str, Any] = {"__metadata__": {name: str(value) for name, value in facts.about.items()}}
        at = 0
        for name, (dtype, item_bytes, shape) in shapes.items():
            end = at + item_bytes * math.prod(shape)
            fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            at = end
        return json.dumps(fields, separators=(",", ":")).encode()


class PtWriter:
    """`.pt`: `embeddings`, `sequence_ids` and `metadata`, as in a checkpoint, for `torch.load(weights_only=True)`.

    In the metadata: `objects`, and `object_splits` int64 [objects + 1], since records of one object are adjacent; `offsets`
    int64 [N]; per token `row_splits` int64 [N + 1]. The ids are a Python list in this format, so they, and they alone, are
    held in memory, as they are by whoever loads the file. Takes twice the rows' room on the disk while it is written.
    """

    def __init__(self, path: Path, facts: Facts) -> None:
        self._path = path
        self._facts = facts
        self._scratch_path = _beside(path, ".scratch")
        self._scratch = self._scratch_path.open("wb")
        self._ids: list[str] = []
        self._offsets = torch.empty(facts.num_records, dtype=torch.int64)
        self._splits = torch.zeros(facts.num_records + 1 if facts.is_per_token else 0, dtype=torch.int64)
        self._objects: list[str] = []
        self._object_splits = [0]
        self._num_rows = 0

    def add(self, part: Part) -> None:
        """Append records."""
        start, end = len(self._ids), len(self._ids) + len(part.ids)
        self._scratch.write(_raw(part.embeddings).data)
        self._ids += part.ids
        self._offsets[start:end] = torch.tensor(part.offsets, dtype=torch.int64)
        if part.lengths is not None:
            self._splits[start + 1 : end + 1] = self._num_rows + torch.tensor(part.lengths, dtype=torch.int64).cumsum(0)
        if self._objects[-1:] != [part.object]:
            self._objects.append(part.object)
            self._object_splits.append(end)
        self._object_splits[-1] = end
        self._num_rows += len(part.embeddings)

    def close(self) -> None:
        """Let torch write the file out of a map of the scratch file, whose pages the kernel drops as it likes."""
        self._scratch.close()
        metadata = {
            **self._facts.about,
            "offsets": self._offsets,
            "objects": self._objects,
            "object_splits": torch.tensor(self._object_splits, dtype=torch.int64),
            **({"row_splits": self._splits} if self._facts.is_per_token else {}),
        }
        shape = (self._num_rows, self._facts.width)
        rows = torch.empty(shape, dtype=self._facts.dtype)
        if rows.numel():
            mapped = torch.from_file(
                str(self._scratch_path), shared=True, size=math.prod(shape), dtype=self._facts.dtype
            )
            rows = mapped.reshape(shape)
        torch.save({"embeddings": rows, "sequence_ids": self._ids, "metadata": metadata}, self._path)
        self._scratch_path.unlink()


class ParquetWriter:
    """`.parquet`: `id`, `object`, `offset`, `embedding` (a list of D numbers; per token: a list of such lists)."""

    def __init__(self, path: Path, facts: Facts) -> None:
        value = pa.from_numpy_dtype(_numpy_dtype(facts.dtype))
        row = pa.list_(value, facts.width)
        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("object", pa.string(), nullable=False),
                pa.field("offset", pa.int64(), nullable=False),
                pa.field("embedding", pa.list_(row) if facts.is_per_token else row),
            ],
            metadata={name: str(value) for name, value in facts.about.items()},
        )
        self._schema = schema
        self._width = facts.width
        # A dictionary of floating-point numbers has no repeats to save and costs their size once more.
        self._writer = pq.ParquetWriter(path, schema, use_dictionary=["object"])
        self._waiting: list[Any] = []
        self._waiting_bytes = 0

    def add(self, part: Part) -> None:
        """Append records; a row group is written once enough of them wait."""
        values = pa.array(_numpy_values(part.embeddings).reshape(-1))
        embedding = pa.FixedSizeListArray.from_arrays(values, self._width)
        if part.lengths is not None:
            splits = np.concatenate([[0], np.cumsum(part.lengths)]).astype(np.int32)
            embedding = pa.ListArray.from_arrays(pa.array(splits), embedding)
        columns = [
            pa.array(part.ids, pa.string()),
            pa.repeat(part.object, len(part.ids)),
            pa.array(part.offsets, pa.int64()),
            embedding,
        ]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the last row group and the footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting, self._waiting_bytes = [], 0
            pa.default_memory_pool().release_unused()  # it would keep the largest row group's buffers, twice and more


FORMATS: dict[str, Callable[[Path, Facts], Writer]] = {
    ".pt": PtWriter,
    ".npy": NpyWriter,
    ".safetensors": SafetensorsWriter,
    ".parquet": ParquetWriter,
}
"""By the suffix of the file."""


class _NpyFile:
    """An `.npy` array that grows by rows; the header, of a fixed size, is written last."""

    _HEADER_BYTES = 128
    """What numpy takes for one or two dimensions: it pads for counts of 21 digits."""

    def __init__(self, path: Path, *, columns: int | None, dtype: np.dtype[Any]) -> None:
        self._file = path.open("wb")
        self._file.write(bytes(self._HEADER_BYTES))
        self._columns = columns
        self._dtype = dtype
        self._num_rows = 0

    def append(self, values: np.ndarray[Any, Any]) -> None:
        self._file.write(np.ascontiguousarray(values).data)
        self._num_rows += len(values)

    def close(self) -> None:
        header = BytesIO()
        shape = (self._num_rows,) if self._columns is None else (self._num_rows, self._columns)
        fields = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, fields)
        assert len(header.getvalue()) == self._HEADER_BYTES  # numpy's own padding
        self._file.seek(0)
        self._file.write(header.getvalue())
        self._file.close()


class _IdsFile:
    """`.ids.jsonl`: who each record is, one JSON object a line, since an id may hold any character."""

    def __init__(self, path: Path) -> None:
        self._file = _beside(path, ".ids.jsonl").open("w", encoding="utf-8")

    def append(self, part: Part) -> None:
        for name, offset in zip(part.ids, part.offsets, strict=True):
            self._file.write(
                json.dumps({"id": name, "object": part.object, "offset": offset}, ensure_ascii=False) + "\n"
            )

    def close(self) -> None:
        self._file.close()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """numpy's; float32 for bfloat16, which numpy lacks and float32 holds exactly."""
    found: np.dtype[Any] = _numpy_values(torch.empty(0, dtype=dtype)).dtype
    return found


def _numpy_values(values: torch.Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = (values.float() if values.dtype is torch.bfloat16 else values).numpy()
    return array


def _raw(values: torch.Tensor) -> np.ndarray[Any, Any]:
    """The stored bytes, whatever the type."""
    raw: np.ndarray[Any, Any] = values.contiguous().view(torch.uint8).numpy()
    return raw
