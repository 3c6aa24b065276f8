"""P1 at the reader: however an object is cut, every record is read exactly once, under one name."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract.plan import Compression, InputFormat, InputObject, cut
from contract.store.local import LocalStore
from contract.store.memory import MemoryStore
from tests.worker.records.stored import URI, MemorySource, expected, read, stored
from worker.records.open import read_records
from worker.records.source import StoreSource

FORMATS = list(InputFormat)
COMPRESSIONS = list(Compression)

line_ends = st.sampled_from(["\n", "\r\n"])
blank_lines = st.sampled_from(["", "", "", "\n", " \t\n", "\r\n\n"])
words = st.text(st.sampled_from("ab>| ;é\t1"), max_size=6)
residues = st.text(st.sampled_from("ACDEFGHIKLMNPQRSTVWYacx*-."), min_size=1, max_size=12)


@st.composite
def fasta_texts(draw: st.DrawFn) -> str:
    """Multi-line records with '>' inside their headers, blank lines anywhere, blanks inside sequence lines."""
    end = draw(line_ends)
    text = draw(blank_lines)
    for _ in range(draw(st.integers(0, 8))):
        text += ">" + draw(words) + end
        for _ in range(draw(st.integers(1, 4))):
            text += draw(st.sampled_from(["", "", " "])) + draw(residues) + end + draw(blank_lines)
    return text.rstrip("\r\n") if draw(st.booleans()) else text


@st.composite
def line_texts(draw: st.DrawFn) -> str:
    """Lines, some blank, some that begin with '>'."""
    end = draw(line_ends)
    text = end.join(draw(st.lists(st.text(st.sampled_from("a>é {"), max_size=6), max_size=12)))
    return text + draw(st.sampled_from(["", end]))


@st.composite
def json_texts(draw: st.DrawFn) -> str:
    """Objects, some without an id, and blank lines."""
    objects = draw(st.lists(st.fixed_dictionaries({"sequence": residues}, optional={"id": words}), max_size=8))
    text = draw(blank_lines)
    for fields in objects:
        text += json.dumps(fields, ensure_ascii=draw(st.booleans())) + draw(line_ends) + draw(blank_lines)
    return text.rstrip("\r\n") if draw(st.booleans()) else text


TEXTS = {InputFormat.FASTA: fasta_texts(), InputFormat.LINES: line_texts(), InputFormat.JSONL: json_texts()}


@st.composite
def objects(draw: st.DrawFn, fmt: InputFormat, compression: Compression) -> tuple[bytes, bytes]:
    """(text, stored bytes)."""
    text = (draw(st.sampled_from(["", "", "\ufeff"])) + draw(TEXTS[fmt])).encode()
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 40]), max_size=20))
    return text, stored(text, compression, sizes=sizes, num_members=draw(st.integers(1, 3)))


def ranges_of(size: int, cuts: list[int], compression: Compression) -> list[tuple[int, int]]:
    """Ranges of the object cut at `cuts`."""
    inner = [] if compression is Compression.GZIP else sorted({place for place in cuts if 0 < place < size})
    borders = [0, *inner, size]
    return [(a, b) for a, b in itertools.pairwise(borders) if a < b]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ranges_cut_anywhere_give_every_record_once(
    data: st.DataObject, fmt: InputFormat, compression: Compression
) -> None:
    """Any cuts and any request size give the records of the uncut text, with the same offsets, in the same order."""
    text, body = data.draw(objects(fmt, compression))
    cuts = data.draw(st.lists(st.integers(1, max(1, len(body) - 1)), max_size=12))
    read_bytes = data.draw(st.sampled_from([1, 2, 3, 7, 64, 4096]))

    whole = read(MemorySource(body), fmt, compression)
    found = [
        record
        for start, end in ranges_of(len(body), cuts, compression)
        for record in read(MemorySource(body), fmt, compression, start=start, end=end, read_bytes=read_bytes)
    ]

    naive = expected(text, fmt)
    assert [record.value for record in found] == [value for _, _, value in naive]
    assert [(r.offset, r.next_offset, r.id, r.problem) for r in found] == [
        (r.offset, r.next_offset, r.id, r.problem) for r in whole
    ]
    if compression is not Compression.BGZF:
        assert [(record.offset, record.id) for record in found] == [(offset, name) for offset, name, _ in naive]


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.BGZF])
@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_single_cut_is_right(data: st.DataObject, fmt: InputFormat, compression: Compression) -> None:
    """At each byte of an object a cut divides the records in two without loss."""
    _, body = data.draw(objects(fmt, compression))
    whole = [record.offset for record in read(MemorySource(body), fmt, compression)]

    for place in range(1, len(body)):
        left = read(MemorySource(body), fmt, compression, end=place)
        right = read(MemorySource(body), fmt, compression, start=place)

        assert [record.offset for record in left + right] == whole


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_resuming_after_any_record_gives_the_rest(
    data: st.DataObject, fmt: InputFormat, compression: Compression
) -> None:
    """Entering a range at a record's next_offset yields exactly the tail of the full read, ordinals included."""
    _, body = data.draw(objects(fmt, compression))
    cuts = data.draw(st.lists(st.integers(1, max(1, len(body) - 1)), max_size=2))
    read_bytes = data.draw(st.sampled_from([1, 5, 4096]))

    for start, end in ranges_of(len(body), cuts, compression):
        full = read(MemorySource(body), fmt, compression, start=start, end=end)
        for done, record in enumerate(full, 1):
            resumed = read(
                MemorySource(body),
                fmt,
                compression,
                start=start,
                end=end,
                first_ordinal=done,
                resume_offset=record.next_offset,
                read_bytes=read_bytes,
            )

            assert [(r.ordinal, r.offset, r.next_offset, r.id, r.value) for r in resumed] == [
                (r.ordinal, r.offset, r.next_offset, r.id, r.value) for r in full[done:]
            ]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_records_of_a_range_are_numbered_and_move_forward(
    data: st.DataObject, fmt: InputFormat, compression: Compression
) -> None:
    """Ordinals count from 0, a record ends where the next starts or later, progress never falls nor leaves the range."""
    _, body = data.draw(objects(fmt, compression))
    cuts = data.draw(st.lists(st.integers(1, max(1, len(body) - 1)), max_size=3))

    for start, end in ranges_of(len(body), cuts, compression):
        records = read(MemorySource(body), fmt, compression, start=start, end=end)
        positions = [record.position for record in records]

        assert [record.ordinal for record in records] == list(range(len(records)))
        assert all(a.offset < a.next_offset <= b.offset for a, b in itertools.pairwise(records))
        assert positions == sorted(positions)
        assert all(0 <= position <= end - start for position in positions)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@settings(max_examples=20, deadline=None)
@given(shard_bytes=st.integers(20, 400))
@example(shard_bytes=1)
def test_a_planned_object_is_read_whole_from_a_store(
    tmp_path_factory: pytest.TempPathFactory, compression: Compression, shard_bytes: int
) -> None:
    """Shards cut by the planner and read through a store, in memory or in a directory, hold every record once."""
    text = b"".join(b">r%d > %d\nMKVL\nAAG\n" % (number, number) for number in range(30))
    body = stored(text, compression, sizes=[7] * 40)
    for store in (MemoryStore("memory://bucket"), LocalStore(tmp_path_factory.mktemp("store"))):
        store.put_create("in/object", body)
        (listed,) = store.list()
        planned = InputObject(uri=URI, size=listed.size, etag=listed.etag, compression=compression)
        plan = cut([planned], generation=1, fmt=InputFormat.FASTA, shard_bytes=shard_bytes)

        ids = [
            record.id
            for shard in plan.shards
            for record in read_records(
                StoreSource(store, listed.key, uri=URI, size=listed.size, etag=listed.etag),
                fmt=plan.format,
                compression=shard.compression,
                start=shard.start,
                end=shard.end,
            )
        ]

        assert ids == [f"r{number}" for number in range(30)]
