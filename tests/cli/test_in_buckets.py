"""All commands that read results, over real protocols of buckets: the same as in a directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contract import layout
from contract.manifest import ShardStatus
from tests.cli.outputs import make_output, run_json


def test_a_run_in_a_bucket_is_read_damaged_mended_and_archived(tmp_path: Path, bucket_uri: str) -> None:
    """Status, verify, export, snapshot, requeue, repair, clean-up and archive work on a bucket."""
    made = make_output(tmp_path, output_uri=bucket_uri, num_records=20)
    garbage = layout.build_data_key(1, 0, 1, 99)
    made.store.put_create(garbage, b"garbage")

    assert run_json("status", bucket_uri)["phase"] == "Succeeded"
    assert run_json("verify", bucket_uri)["unnamedObjects"] == 1
    assert run_json("snapshot", bucket_uri, "one")["cut"] == "instant"
    assert run_json("export", bucket_uri, tmp_path / "rows.npy")["records"] == len(np.load(tmp_path / "rows.npy")) == 39
    assert run_json("cleanup", bucket_uri, "--older-than", "0s")["unnamed"]["objects"] == 1
    assert run_json("archive", bucket_uri)["archived"] is True


def test_damage_in_a_bucket_is_found_and_set_back(tmp_path: Path, bucket_uri: str) -> None:
    """By conditional puts on the ETags of the bucket."""
    made = make_output(tmp_path, output_uri=bucket_uri, num_records=20)
    damaged = made.manifest(0).checkpoints[0].key
    made.store.put_overwrite(damaged, b"damaged")
    made.store.put_overwrite(layout.build_shard_key(1, 1), b"damaged")

    found = run_json("verify", bucket_uri, "--requeue", exit_code=1)
    repaired = run_json("repair", bucket_uri, "--shard", "1")

    assert found["requeued"] == [damaged]
    assert repaired["epoch"] == 2
    assert [made.manifest(shard).status for shard in (0, 1)] == [ShardStatus.PENDING, ShardStatus.PENDING]
