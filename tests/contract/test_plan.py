"""The plan: a partition of the listed bytes, the same whoever makes it."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import documents, plan
from contract.errors import Corrupt, NewerFormat
from contract.plan import Compression, InputFormat, InputObject, Plan, cut
from tests.contract import values

compressions = st.sampled_from(Compression)
listings = st.lists(st.tuples(st.integers(0, 5000), compressions), max_size=6).map(
    lambda items: tuple(
        InputObject(uri=f"s3://in/{number:02d}", size=size, etag=f'"{number}"', compression=compression)
        for number, (size, compression) in enumerate(items)
    )
)


def make(objects: tuple[InputObject, ...], shard_bytes: int = 500) -> Plan:
    """A FASTA plan of generation 1."""
    return cut(objects, generation=1, fmt=InputFormat.FASTA, shard_bytes=shard_bytes)


@given(listings, st.integers(1, 2000))
def test_shards_partition_every_object(objects: tuple[InputObject, ...], shard_bytes: int) -> None:
    """Shards of an object follow one another from 0 to its size: no byte is left out or owned twice."""
    made = make(objects, shard_bytes)

    assert [shard.shard for shard in made.shards] == list(range(len(made.shards)))
    for item in objects:
        own = [shard for shard in made.shards if shard.object == item.uri]
        borders = [0, *(shard.end for shard in own)]
        assert [(shard.start, shard.end) for shard in own] == list(itertools.pairwise(borders))
        assert borders[-1] == item.size
    assert made.total_bytes == sum(item.size for item in objects)


@given(listings, st.integers(1, 2000))
def test_shards_are_even_and_bounded(objects: tuple[InputObject, ...], shard_bytes: int) -> None:
    """No shard is empty or above the limit, and those of an object differ by at most one byte; gzip is one shard."""
    made = make(objects, shard_bytes)

    for item in objects:
        lengths = [shard.end - shard.start for shard in made.shards if shard.object == item.uri]
        assert all(length > 0 for length in lengths)
        if item.compression is Compression.GZIP:
            assert lengths == ([item.size] if item.size else [])
        elif lengths:
            assert max(lengths) <= shard_bytes
            assert max(lengths) - min(lengths) <= 1


@given(listings, st.randoms(use_true_random=False))
def test_whoever_plans_writes_the_same_bytes(objects: tuple[InputObject, ...], rng: random.Random) -> None:
    """The order of the listing does not show in the stored plan."""
    shuffled = list(objects)
    rng.shuffle(shuffled)

    assert plan.to_json(make(tuple(shuffled))) == plan.to_json(make(objects))


@given(listings, st.sampled_from(InputFormat))
def test_round_trip(objects: tuple[InputObject, ...], fmt: InputFormat) -> None:
    """The stored plan gives back every object and shard."""
    made = cut(objects, generation=3, fmt=fmt, shard_bytes=700)

    assert plan.from_json(plan.to_json(made), where="plan.json") == made


def test_a_small_rest_is_shared_out() -> None:
    """65 bytes at a limit of 64 become two halves, not a full shard and a crumb."""
    made = make((InputObject(uri="file:///a", size=65, etag="1"),), 64)

    assert [(shard.start, shard.end) for shard in made.shards] == [(0, 32), (32, 65)]


@pytest.mark.parametrize("shard_bytes", [0, -1])
def test_shards_must_have_a_size(shard_bytes: int) -> None:
    """A size that cannot cut is refused."""
    with pytest.raises(ValueError, match="must be positive"):
        make((), shard_bytes)


def test_an_object_listed_twice_is_refused() -> None:
    """Otherwise each of its records would be embedded twice."""
    item = InputObject(uri="file:///a", size=65, etag="1")

    with pytest.raises(ValueError, match="listed twice"):
        make((item, dataclasses.replace(item, etag="2")))


def test_a_terabyte_is_planned_in_seconds() -> None:
    """1 TiB in 1,000 objects, 64 MiB shards: cut, stored and read back without looking at the input."""
    objects = tuple(InputObject(uri=f"s3://in/{n:04d}", size=2**40 // 1000, etag=str(n)) for n in range(1000))
    start = time.process_time()

    made = plan.from_json(plan.to_json(make(objects, 64 * 2**20)), where="plan.json")

    assert len(made.shards) == 17_000
    assert time.process_time() - start < 5


def test_a_newer_plan_is_refused() -> None:
    """A plan of a later format is not guessed at."""
    with pytest.raises(NewerFormat):
        plan.from_json(documents.encode(plan.KIND, plan.FORMAT_VERSION + 1, {}), where="plan.json")


@pytest.mark.parametrize(
    "fields", [{}, {"generation": 1, "format": "fasta", "shardBytes": 1, "objects": [], "shards": [[0, 0, 1]]}]
)
def test_a_plan_of_another_shape_is_corrupt(fields: dict[str, object]) -> None:
    """An intact document that is no plan, or whose shards name no object, is Corrupt."""
    with pytest.raises(Corrupt, match=r"plan\.json"):
        plan.from_json(documents.encode(plan.KIND, 1, fields), where="plan.json")


def test_the_sample_plan_is_what_it_says() -> None:
    """Two shards of the plain object, one of the gzip object, in URI order."""
    assert [shard.object for shard in values.plan().shards] == ["s3://in/a.jsonl"] * 2 + ["s3://in/b.jsonl.gz"]
