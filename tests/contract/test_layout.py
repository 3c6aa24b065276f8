"""Keys: what is built is parsed back, and nothing else is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import layout
from contract.errors import Corrupt

numbers = st.integers(0, 10**9)


@given(numbers, numbers)
def test_shard_keys_round_trip(generation: int, shard: int) -> None:
    """Wider numbers than the padding only grow; they never run into each other."""
    key = layout.build_shard_key(generation, shard)

    assert layout.parse_shard_key(key) == (generation, shard)
    assert layout.parse_generation(key) == generation
    assert layout.parse_data_key(key) is None
    assert key.startswith(layout.build_shards_prefix(generation))


@given(numbers, numbers, numbers, numbers)
def test_data_keys_round_trip(generation: int, shard: int, epoch: int, number: int) -> None:
    """Generation, shard, epoch and number come back from the key."""
    key = layout.build_data_key(generation, shard, epoch, number)

    assert layout.parse_data_key(key) == (generation, shard, epoch, number)
    assert layout.parse_shard_key(key) is None
    assert key.startswith(layout.build_shard_data_prefix(generation, shard))
    assert key.startswith(layout.build_data_prefix(generation))


def test_keys_are_spelt_as_documented() -> None:
    """The names a reader of the store sees."""
    assert layout.build_plan_key(1) == "g0001/plan.json"
    assert layout.build_shard_key(1, 42) == "g0001/shards/00042.json"
    assert layout.build_data_key(1, 42, 3, 7) == "g0001/data/00042/e0003-000007.pt"
    assert layout.build_index_key(1) == "g0001/index.json"
    assert layout.build_success_key(1) == "g0001/_SUCCESS"
    assert layout.build_snapshot_key(1, "before-upgrade") == "g0001/snapshots/before-upgrade.json"


FOREIGN = [
    "",
    "run.json",
    "/g0001/data/00042/e0003-000007.pt",
    "g0001/data/../data/00042/e0003-000007.pt",
    "g0001/data/00042/../../../secret.pt",
    "g0001/data/00042/e0003-000007.pt/..",
    "g0001/data/00042/e0003-000007.pt\n",
    "g0001/data/00042/e0003-000007.PT",
    "g0001/data/42/e3-7.pt",
    "g00001/data/00042/e0003-000007.pt",
    "g0001/data/000042/e0003-000007.pt",
    "g0001/data/00042/e0003-0000007.pt",
    "g000\N{ARABIC-INDIC DIGIT ONE}/data/00042/e0003-000007.pt",
    "g0001\\data\\00042\\e0003-000007.pt",
    "g-001/data/00042/e0003-000007.pt",
    "s3://other/g0001/data/00042/e0003-000007.pt",
]


@pytest.mark.parametrize("key", FOREIGN)
def test_foreign_keys_are_not_parsed(key: str) -> None:
    """Paths that climb, second spellings and other digits are no keys of ours."""
    assert layout.parse_data_key(key) is None
    assert layout.parse_shard_key(key.replace("data", "shards")) is None


@pytest.mark.parametrize("key", [*FOREIGN, "g0002/data/00042/e0003-000007.pt", "g0001/data/00041/e0003-000007.pt"])
def test_a_manifest_can_name_only_its_own_checkpoints(key: str) -> None:
    """Any key but a checkpoint of this generation and shard is Corrupt: nothing else is ever read or deleted."""
    with pytest.raises(Corrupt, match=r"m\.json: names .* generation 1, shard 42"):
        layout.checked_data_key(key, generation=1, shard=42, where="m.json")


@pytest.mark.parametrize("key", [*FOREIGN, "g0002/data/00042/e0003-000007.pt"])
def test_an_index_can_name_only_checkpoints_of_its_generation(key: str) -> None:
    """Without a shard, the generation must still match."""
    with pytest.raises(Corrupt, match=r"i\.json: names .* generation 1$"):
        layout.checked_data_key(key, generation=1, where="i.json")


def test_own_checkpoints_pass() -> None:
    """A key of the shard itself is returned as it is."""
    key = layout.build_data_key(1, 42, 3, 7)

    assert layout.checked_data_key(key, generation=1, shard=42, where="m.json") == key
    assert layout.checked_data_key(key, generation=1, where="i.json") == key


@pytest.mark.parametrize(
    "key", ["run.json", "coordinator.json", ".probe/x/a", "g1/plan.json", "g00001/plan.json", "x/g0001/y"]
)
def test_keys_outside_generations_have_none(key: str) -> None:
    """Only a key below a generation's prefix belongs to one."""
    assert layout.parse_generation(key) is None


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "UPPER", "a b", "a" * 64, "-x", "x-", "../run", "a\n"])
def test_snapshot_names_that_are_no_labels_are_refused(name: str) -> None:
    """A snapshot's name cannot leave its prefix; the message shows a name that works."""
    with pytest.raises(ValueError, match="before-upgrade"):
        layout.build_snapshot_key(1, name)


def test_a_log_is_found_by_its_worker() -> None:
    """Workers of one name have logs of their own; no name leads out of the prefix."""
    keys = {
        layout.build_log_key(1, pod, uid) for pod, uid in (("run-0-0", "a"), ("run-0-0", "b"), ("Host_1/../..", "a"))
    }

    assert len(keys) == 3
    assert all(re.fullmatch(r"g0001/logs/[A-Za-z0-9._-]+-[0-9a-f]{8}\.txt", key) for key in keys)
    assert layout.build_log_key(1, "run-0-0", "a").startswith(f"{layout.build_logs_prefix(1)}run-0-0-")


def test_a_log_tells_its_worker() -> None:
    """The name as it stands in the key; other keys tell none."""
    assert layout.parse_log_key(layout.build_log_key(12, "run-0-0", "a")) == (12, "run-0-0")
    assert layout.parse_log_key("g0001/logs/run-0-0.txt") is None
    assert layout.parse_log_key("g00001/logs/run-0-0-01234567.txt") is None
