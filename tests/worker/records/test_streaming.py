"""What a read asks of the store and holds in memory, whatever the size of the object; and one read over S3."""

from __future__ import annotations

import tracemalloc

import pytest

from contract.errors import InvalidInput
from contract.plan import Compression, InputFormat, cut
from contract.store.inputs import list_inputs
from contract.store.open import open_store
from tests.worker.records.stored import URI, MemorySource, bgzf, read
from worker.records import split
from worker.records.open import read_records
from worker.records.source import open_source


class EndlessFasta:
    """A ByteSource of 4 GiB in records of 16 bytes."""

    record = b">abcdef\nMKVLAGA\n"
    uri = URI
    size = 1 << 32

    def read(self, start: int, end: int) -> bytes:
        """See ByteSource."""
        end = min(end, self.size)
        first = start // 16
        return (self.record * (-(-end // 16) - first))[start - first * 16 : end - first * 16]


def test_the_first_records_of_a_huge_range_cost_one_request_and_little_memory() -> None:
    """Reading is lazy: 4 GiB ahead are not touched."""
    tracemalloc.start()
    records = read_records(
        EndlessFasta(), fmt=InputFormat.FASTA, compression=Compression.NONE, start=0, end=EndlessFasta.size
    )
    first = [next(records) for _ in range(1000)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert [record.offset for record in first] == list(range(0, 16_000, 16))
    assert peak_bytes < 64 << 20


def test_a_range_is_read_once_and_hardly_beyond_its_end() -> None:
    """The look at the object's head, the byte before the range, the range, and 64 KiB for the last record's end."""
    source = MemorySource(b">abcdef\nMKVLAGA\n" * 100_000)

    read(source, start=160_000, end=800_000, read_bytes=320_000)

    assert source.reads == [
        (0, 65_536),
        (159_999, 160_000),
        (160_000, 480_000),
        (480_000, 800_000),
        (800_000, 865_536),
    ]


def test_a_range_inside_of_one_record_is_given_up_at_its_end() -> None:
    """Or a chromosome cut into shards would be read by each of them to its end."""
    source = MemorySource(b">chromosome\n" + b"ACGTACGT\n" * 100_000)

    assert read(source, start=100_000, end=200_000, read_bytes=50_000) == []
    assert source.reads[-1] == (200_000, 250_000)


def test_a_record_past_the_end_of_its_range_is_read_in_growing_requests() -> None:
    """A long last record costs few requests."""
    source = MemorySource(b">a\n" + b"M" * 2_000_000 + b"\n>b\nM\n")

    (record,) = read(source, end=1)

    assert len(record.value) == 2_000_000
    assert [end - start for start, end in source.reads[1:]] == [1, 65_536, 262_144, 1_048_576, 623_752]
    assert record.position == 1


@pytest.mark.parametrize("read_bytes", [100, 4096])
def test_a_record_above_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
    """It names its offset; the records before it are read."""
    monkeypatch.setattr(split, "MAX_RECORD_BYTES", 1 << 20)
    source = MemorySource(b">a\nMKV\n>b\n" + b"M" * (2 << 20))
    records = read_records(
        source,
        fmt=InputFormat.FASTA,
        compression=Compression.NONE,
        start=0,
        end=source.size,
        read_bytes=read_bytes,
    )

    assert next(records).id == "a"
    with pytest.raises(InvalidInput, match=f"{URI}: the record at offset 7 is longer than 1 MiB"):
        next(records)


def test_block_gzip_in_s3_is_listed_cut_and_read_whole(s3_uri: str) -> None:
    """From the URI the user writes to the records, over HTTP: a .gz that is block gzip is shared by many ranges."""
    store = open_store(s3_uri)
    store.put_create("in/a.fasta.gz", bgzf(b">r\nMKVLAG\n" * 500, [400] * 12))

    objects = list_inputs([f"{s3_uri}/in/*.gz"], shard_bytes=100)
    plan = cut(objects, generation=1, fmt=InputFormat.FASTA, shard_bytes=100)
    source = open_source(objects[0])
    records = [
        record
        for shard in plan.shards
        for record in read_records(
            source, fmt=plan.format, compression=shard.compression, start=shard.start, end=shard.end
        )
    ]

    assert len(plan.shards) > 3
    assert [record.value for record in records] == ["MKVLAG"] * 500
    assert len({record.offset for record in records}) == 500
