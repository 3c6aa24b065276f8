"""index.json: a pure function of the manifests, in input order."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from contract import documents, index
from contract.errors import Corrupt, NewerFormat
from contract.index import IndexedFile, build_index
from contract.manifest import ShardManifest, ShardStatus
from contract.names import QuarantineClass
from tests.contract import values


def complete(shard: int, *firsts: int) -> ShardManifest:
    """A complete shard with a checkpoint of ten records from each of `firsts`, committed in that order."""
    checkpoints = tuple(
        replace(values.checkpoint(first, first + 10), key=f"g0001/data/{shard:05d}/e0001-{number:06d}.pt")
        for number, first in enumerate(firsts)
    )
    return replace(values.running(), shard=shard, status=ShardStatus.COMPLETE, owner=None, checkpoints=checkpoints)


def test_round_trip() -> None:
    """Every field survives being stored."""
    assert index.from_json(index.to_json(values.index()), where="index.json") == values.index()


def test_files_are_in_input_order_whatever_the_commit_order() -> None:
    """Files come by shard, then by first record, so that reading them in turn is reading the input in turn."""
    manifests = [complete(1, 0), complete(0, 20, 0, 10)]
    stored = {index.to_json(build_index(order, generation=1)) for order in itertools.permutations(manifests)}

    (body,) = stored
    keys = [item.key for item in index.from_json(body, where="index.json").files]

    assert keys == [
        "g0001/data/00000/e0001-000001.pt",
        "g0001/data/00000/e0001-000002.pt",
        "g0001/data/00000/e0001-000000.pt",
        "g0001/data/00001/e0001-000000.pt",
    ]


def test_it_counts_and_names_everything() -> None:
    """Rows, quarantined records and failed shards are those of the manifests."""
    built = build_index([values.full_manifest(), complete(0, 0)], generation=1)

    assert built.records == 19
    assert [(item.object, item.offset, item.quarantine_class) for item in built.quarantined] == [
        ("s3://in/a.fasta", 400, QuarantineClass.NON_FINITE)
    ]
    assert built.failed_shards == (7,)


@pytest.mark.parametrize("key", ["../secret.pt", "g0002/data/00007/e0001-000000.pt", "run.json"])
def test_it_can_name_only_checkpoints_of_its_generation(key: str) -> None:
    """A reader that follows the index reads nothing else, even under a valid checksum."""
    built = replace(values.index(), files=(IndexedFile(key=key, records=1, bytes=1, sha256="0"),))

    with pytest.raises(Corrupt, match="no checkpoint of generation 1"):
        index.from_json(index.to_json(built), where="index.json")


def test_a_newer_index_is_refused() -> None:
    """An index of a later format is not guessed at."""
    with pytest.raises(NewerFormat):
        index.from_json(documents.encode(index.KIND, index.FORMAT_VERSION + 1, {}), where="index.json")


def test_an_index_of_another_shape_is_corrupt() -> None:
    """An intact document without the fields is Corrupt."""
    with pytest.raises(Corrupt, match=r"index\.json"):
        index.from_json(documents.encode(index.KIND, 1, {}), where="index.json")
