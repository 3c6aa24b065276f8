"""Tests of `inferencerun export`: every format reads back equal, in input order, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from contract import layout, transitions
from contract.manifest import ShardStatus
from tests.cli.outputs import NOW, OWNER, WIDTH, Made, make_output, num_rows, put_checkpoint, row, run, run_json


@dataclass(frozen=True)
class Read:
    """An export as its own library reads it."""

    embeddings: torch.Tensor
    names: list[tuple[str, int, str]]
    """(object, offset, id)"""
    row_splits: list[int] | None


def names_beside(path: Path) -> list[tuple[str, int, str]]:
    """What `.ids.jsonl` says."""
    lines = [json.loads(line) for line in path.with_name(path.name + ".ids.jsonl").read_text().splitlines()]
    return [(line["object"], line["offset"], line["id"]) for line in lines]


def read_pt(path: Path) -> Read:
    """By torch, without pickle's code."""
    loaded = torch.load(path, weights_only=True)
    metadata = loaded["metadata"]
    splits = metadata["object_splits"].tolist()
    counts = [end - start for start, end in pairwise(splits)]
    objects = [uri for uri, number in zip(metadata["objects"], counts, strict=True) for _ in range(number)]
    return Read(
        embeddings=loaded["embeddings"],
        names=list(zip(objects, metadata["offsets"].tolist(), loaded["sequence_ids"], strict=True)),
        row_splits=metadata["row_splits"].tolist() if "row_splits" in metadata else None,
    )


def read_npy(path: Path) -> Read:
    """By numpy, memory-mapped."""
    splits = path.with_name(path.name + ".row_splits.npy")
    return Read(
        embeddings=torch.from_numpy(np.load(path, mmap_mode="r").copy()),
        names=names_beside(path),
        row_splits=np.load(splits).tolist() if splits.exists() else None,
    )


def read_safetensors(path: Path) -> Read:
    """By safetensors' own reader."""
    loaded = safetensors.torch.load_file(path)
    names = names_beside(path)
    assert loaded["offsets"].tolist() == [offset for _, offset, _ in names]
    splits = loaded.get("row_splits")
    return Read(embeddings=loaded["embeddings"], names=names, row_splits=None if splits is None else splits.tolist())


def read_parquet(path: Path) -> Read:
    """By pyarrow."""
    table = pq.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    cells = columns["embedding"]
    is_per_token = bool(cells) and isinstance(cells[0][0], list)
    rows = [inner for cell in cells for inner in cell] if is_per_token else cells
    value_type = table.schema.field("embedding").type
    value_type = value_type.value_type.value_type if is_per_token else value_type.value_type
    return Read(
        embeddings=torch.from_numpy(np.array(rows, dtype=value_type.to_pandas_dtype())),
        names=list(zip(columns["object"], columns["offset"], columns["id"], strict=True)),
        row_splits=np.cumsum([0, *map(len, cells)]).tolist() if is_per_token else None,
    )


READERS: dict[str, Callable[[Path], Read]] = {
    ".pt": read_pt,
    ".npy": read_npy,
    ".safetensors": read_safetensors,
    ".parquet": read_parquet,
}


def expected_rows(made: Made, dtype: str) -> torch.Tensor:
    """The rows of all sound records in input order."""
    is_per_token = made.record.model.kind == "perToken"
    names = [name for _, _, name in made.rows()]
    return torch.cat([row(name, num_rows(name) if is_per_token else 1, WIDTH, dtype) for name in names])


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pooled_rows_read_back_equal(tmp_path: Path, suffix: str, dtype: str) -> None:
    """Bit for bit, in input order, each with its id, object and offset."""
    made = make_output(tmp_path, dtype=dtype)
    dest = tmp_path / f"rows{suffix}"

    said = run_json("export", made.uri, dest)

    found, wanted = READERS[suffix](dest), expected_rows(made, dtype)
    if dtype == "bfloat16" and suffix in (".npy", ".parquet"):
        wanted = wanted.float()
    assert found.embeddings.dtype == wanted.dtype
    assert torch.equal(found.embeddings, wanted)
    assert found.names == made.rows()
    assert found.row_splits is None
    assert (said["records"], said["rows"], said["width"], said["quarantined"]) == (78, 78, WIDTH, 2)
    assert sorted(said["files"]) == sorted(str(path) for path in tmp_path.glob("rows*"))


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_per_token_read_back_equal(tmp_path: Path, suffix: str, dtype: str) -> None:
    """All rows in one matrix, and the splits that say whose they are."""
    made = make_output(tmp_path, kind="perToken", dtype=dtype)
    dest = tmp_path / f"rows{suffix}"

    run_json("export", made.uri, dest)

    found = READERS[suffix](dest)
    assert torch.equal(found.embeddings, expected_rows(made, dtype))
    assert found.names == made.rows()
    assert found.row_splits == np.cumsum([0, *(num_rows(name) for _, _, name in made.rows())]).tolist()


def test_files_tell_where_they_come_from(tmp_path: Path) -> None:
    """Run, generation and model are in the metadata of those formats that have any."""
    made = make_output(tmp_path)
    for suffix in (".pt", ".safetensors", ".parquet"):
        run_json("export", made.uri, tmp_path / f"rows{suffix}")

    with safe_open(tmp_path / "rows.safetensors", "pt") as opened:
        from_safetensors = opened.metadata()
    from_parquet = pq.read_schema(tmp_path / "rows.parquet").metadata
    from_pt = torch.load(tmp_path / "rows.pt", weights_only=True)["metadata"]

    assert (from_safetensors["run"], from_safetensors["generation"], from_safetensors["model"]) == ("made", "1", "kmer")
    assert (from_parquet[b"run"], from_parquet[b"generation"], from_parquet[b"model"]) == (b"made", b"1", b"kmer")
    assert (from_pt["run"], from_pt["generation"], from_pt["model"]) == ("made", 1, "kmer")


@pytest.mark.parametrize("suffix", READERS)
def test_retried_records_come_in_their_place(tmp_path: Path, suffix: str) -> None:
    """A record whose own checkpoint lies inside the range of an older one stands where the input has it."""
    made = make_output(tmp_path, bad=(), is_finished=False)
    records = made.records[0]
    current = transitions.first_claim(made.plan.shards[0], generation=1, owner=OWNER, commit_id="a", now=NOW)
    current = replace(current, epoch=2)
    outer = put_checkpoint(made, current, [records[0], *records[2:5], *records[6:]], number=1)
    inner = [put_checkpoint(made, current, records[at : at + 1], number=at + 1) for at in (1, 5)]
    made.overwrite(
        replace(
            current,
            status=ShardStatus.COMPLETE,
            owner=None,
            records=len(records),
            done=((0, len(records)),),
            checkpoints=(outer, *inner),
        )
    )
    made.finish()
    dest = tmp_path / f"rows{suffix}"

    run_json("export", made.uri, dest)

    found = READERS[suffix](dest)
    assert found.names == made.rows()
    assert torch.equal(found.embeddings, expected_rows(made, "float32"))


@pytest.mark.parametrize("suffix", READERS)
def test_an_unfinished_run_is_refused_unless_partial(tmp_path: Path, suffix: str) -> None:
    """Nobody takes half a result for a whole one; --partial gives what there is."""
    made = make_output(tmp_path, only_shards=(0, 3), stop_after={3: 1}, is_finished=False)
    dest = tmp_path / f"rows{suffix}"

    refused = run("export", made.uri, dest)
    said = run_json("export", made.uri, dest, "--partial")

    assert refused.exit_code == 64
    assert "--partial" in refused.stderr
    found = READERS[suffix](dest)
    assert said["partial"] is True
    assert len(found.names) == said["records"] == len(found.embeddings)
    assert found.names == [name for name in made.rows() if name in set(found.names)]


@pytest.mark.parametrize("suffix", READERS)
def test_a_run_without_rows_gives_an_empty_file(tmp_path: Path, suffix: str) -> None:
    """No record is no error: the file is there, readable, and empty."""
    made = make_output(tmp_path, num_records=2, num_objects=1, bad=(0, 1))
    dest = tmp_path / f"rows{suffix}"

    said = run_json("export", made.uri, dest)

    assert (said["records"], said["width"]) == (0, 0)
    assert READERS[suffix](dest).names == []


@pytest.mark.parametrize("suffix", READERS)
def test_a_damaged_checkpoint_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    """The export stops with key and remedy; neither a part nor a scratch file stays, and an older export does."""
    made = make_output(tmp_path)
    dest = tmp_path / f"rows{suffix}"
    dest.write_bytes(b"older")
    before = sorted(tmp_path.iterdir())
    key = made.manifest(3).checkpoints[0].key
    made.store.put_overwrite(key, made.store.get(key).body[:-1])

    result = run("export", made.uri, dest)

    assert result.exit_code == 64
    assert key in result.stderr
    assert "run 'inferencerun verify OUTPUT_URI'" in result.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert dest.read_bytes() == b"older"


def test_rows_of_two_widths_are_refused(tmp_path: Path) -> None:
    """Checkpoints of different models cannot end up in one matrix."""
    made = make_output(tmp_path, is_finished=False)
    current = replace(made.manifest(1), epoch=2)
    narrow = put_checkpoint(made, current, made.records[1][:2], number=1, width=3)
    made.overwrite(replace(current, checkpoints=(narrow,), done=((0, 2),)))
    made.finish()

    result = run("export", made.uri, tmp_path / "rows.npy")

    assert result.exit_code == 64
    assert "rows are 3 wide, the first is 6 wide" in result.stderr


@pytest.mark.parametrize(
    ("dest", "expected"), [("rows.csv", "use one of .pt, .npy"), ("absent/rows.npy", "cannot be written: No such file")]
)
def test_a_destination_that_cannot_be_is_refused(tmp_path: Path, dest: str, expected: str) -> None:
    """The message says what is possible."""
    made = make_output(tmp_path)

    result = run("export", made.uri, tmp_path / dest)

    assert result.exit_code == 64
    assert expected in result.stderr


def test_an_unreadable_manifest_stops_the_export(tmp_path: Path) -> None:
    """Its records would silently be missing; the message names the way out."""
    made = make_output(tmp_path)
    made.store.put_overwrite(layout.build_shard_key(1, 2), b"{")

    result = run("export", made.uri, tmp_path / "rows.npy")

    assert result.exit_code == 64
    assert "inferencerun repair" in result.stderr


MEASURE = """
import json, os, sys, threading
from pathlib import Path
from click.testing import CliRunner
from cli.main import main
import cli.export

def private_bytes():
    resident, shared = (int(field) for field in Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")

def watch(stop, peak):
    while not stop.wait(0.002):
        peak[0] = max(peak[0], private_bytes())

growth = {}
for suffix in (".npy", ".safetensors", ".pt", ".parquet"):
    dest = f"{sys.argv[2]}/rows{suffix}"
    before, stop = private_bytes(), threading.Event()
    peak = [before]
    thread = threading.Thread(target=watch, args=(stop, peak))
    thread.start()
    result = CliRunner().invoke(main, ["export", sys.argv[1], dest], catch_exceptions=False)
    stop.set()
    thread.join()
    assert result.exit_code == 0, result.output
    growth[suffix] = (peak[0] - before, os.path.getsize(dest))
    os.unlink(dest)
print(json.dumps(growth))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    """200 MB of rows go out with less than 100 MB of private memory on top, in every format.

    Private memory, since the pages of a mapped file are the kernel's to drop.
    """
    made = make_output(
        tmp_path, num_records=400, num_objects=1, shard_bytes=10_000, per_checkpoint=20, bad=(), width=125_000
    )
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, made.uri, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert measured.returncode == 0, measured.stderr

    growth: dict[str, Any] = json.loads(measured.stdout)

    for suffix, (private_bytes, file_bytes) in growth.items():
        assert file_bytes > 150e6, suffix
        assert private_bytes < 100e6, (suffix, private_bytes)


def test_people_read_what_was_written(tmp_path: Path) -> None:
    """Counts, width and type, and every file."""
    made = make_output(tmp_path, dtype="float16")

    lines = run("export", made.uri, tmp_path / "rows.npy").stdout.splitlines()

    assert lines[0].startswith("78 records, 78 rows of 6 x float16")
    assert lines[0].endswith("2 quarantined")
    assert [line.strip() for line in lines[1:]] == [str(tmp_path / "rows.npy.ids.jsonl"), str(tmp_path / "rows.npy")]


def test_a_checkpoint_that_belies_its_manifest_stops_the_export(tmp_path: Path) -> None:
    """Its bytes are those named, but it is another run's: rows of two runs must not mix."""
    made = make_output(tmp_path, is_finished=False)
    made.record = replace(made.record, name="another")
    current = replace(made.manifest(1), epoch=2)
    foreign = put_checkpoint(made, current, made.records[1][:2], number=1)
    made.overwrite(replace(current, checkpoints=(foreign,), done=((0, 2),)))
    made.finish()

    result = run("export", made.uri, tmp_path / "rows.npy")

    assert result.exit_code == 64
    assert f"{foreign.key}: metadata says run 'another' instead of 'made'" in result.stderr
