"""From the URIs a user writes to objects."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.errors import SpecError
from contract.plan import Compression
from contract.store.errors import Unavailable
from contract.store.inputs import list_inputs
from contract.store.memory import MemoryStore
from contract.store.open import open_store, split_object_uri
from contract.store.protocol import Listed, ObjectStore, Stored
from tests.worker.records.stored import bgzf

KEYS = (
    ".hidden.fasta",
    "in/.hidden.fasta",
    "in/_SUCCESS",
    "in/_tmp/e.fasta",
    "in/a.fasta",
    "in/b.fasta.tmp",
    "in/b.fasta~",
    "in/b2.fasta",
    "in/deep/.git/f.fasta",
    "in/deep/er/d.fasta",
    "in/deep/c.fasta",
    "in2/g.fasta",
    "top.fasta",
)


class Counting(MemoryStore):
    """Counts reads, and what listings give."""

    num_gets = num_listed = 0

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """See ObjectStore."""
        for item in super().list(prefix, is_deep=is_deep):
            self.num_listed += 1
            yield item

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
        """See ObjectStore."""
        self.num_gets += 1
        return super().get(key, start=start, end=end)


def bucket(objects: dict[str, bytes]) -> Counting:
    """A bucket that holds `objects`."""
    store = Counting("s3://bucket")
    for key, body in objects.items():
        store.put_create(key, body)
    return store


def listed(store: ObjectStore, *keys: str, shard_bytes: int = 1000) -> list[str]:
    """Keys of the inputs named by `keys` in the bucket."""
    found = list_inputs([f"s3://bucket/{key}" for key in keys], shard_bytes=shard_bytes, open_store=lambda _: store)
    return [item.uri.removeprefix("s3://bucket/") for item in found]


ALL = [
    "in/a.fasta",
    "in/b2.fasta",
    "in/deep/c.fasta",
    "in/deep/er/d.fasta",
]


@pytest.mark.parametrize("place", ["s3://bucket", "file://DIRECTORY", "DIRECTORY"])
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("in/a.fasta", ["in/a.fasta"]),
        ("in/_SUCCESS", ["in/_SUCCESS"]),
        ("in", ALL),
        ("in/", ALL),
        ("in/deep", ["in/deep/c.fasta", "in/deep/er/d.fasta"]),
        ("", [*ALL, "in2/g.fasta", "top.fasta"]),
        ("in/*", ["in/_SUCCESS", "in/a.fasta", "in/b.fasta.tmp", "in/b.fasta~", "in/b2.fasta"]),
        ("in/*.fasta", ["in/a.fasta", "in/b2.fasta"]),
        ("in/?.fasta", ["in/a.fasta"]),
        ("in/b[0-9].fasta", ["in/b2.fasta"]),
        ("in/[!b]*.fasta", ["in/a.fasta"]),
        ("in/.*.fasta", ["in/.hidden.fasta"]),
        ("*/*.fasta", ["in/a.fasta", "in/b2.fasta", "in2/g.fasta"]),
        (
            "in*/",
            ["in/_SUCCESS", "in/_tmp/e.fasta", "in/a.fasta", "in/b.fasta.tmp", "in/b.fasta~", *ALL[1:], "in2/g.fasta"],
        ),
        ("in/**/c.fasta", ["in/deep/c.fasta"]),
        ("in/**/a.fasta", ["in/a.fasta"]),
        ("**/*.fasta", ["in/_tmp/e.fasta", *ALL, "in2/g.fasta", "top.fasta"]),
        ("in/deep/**", ["in/deep/c.fasta", "in/deep/er/d.fasta"]),
        ("in/*/[c-d].fasta", ["in/deep/c.fasta"]),
    ],
)
def test_a_uri_names_an_object_a_directory_or_a_pattern(
    tmp_path: Path, place: str, key: str, expected: list[str]
) -> None:
    """The same in a bucket and in a directory, which may be written as a plain path."""
    place = place.replace("DIRECTORY", str(tmp_path))
    memory = bucket({})
    store = memory if place.startswith("s3") else open_store(place)
    for name in KEYS:
        store.put_create(name, b">a\nM\n")

    found = list_inputs(
        [f"{place}/{key}"], shard_bytes=10, open_store=lambda uri: memory if uri.startswith("s3") else open_store(uri)
    )

    root = place if "://" in place else f"file://{place}"
    assert [item.uri for item in found] == [f"{root}/{name}" for name in expected]


def test_an_input_carries_what_a_plan_needs(tmp_path: Path) -> None:
    """Size and ETag as listed, and a URI that leads back to the object."""
    store = open_store(str(tmp_path))
    etag = store.put_create("in/a [1]?.fasta", b">a\nM\n")

    (item,) = list_inputs([f"{tmp_path}/in"], shard_bytes=10)
    root, key = split_object_uri(item.uri)

    assert (item.size, item.etag, item.compression) == (5, etag, Compression.NONE)
    assert open_store(root).get(key).body == b">a\nM\n"


def test_an_object_named_twice_is_one_input_and_inputs_are_in_uri_order() -> None:
    """However the user overlaps patterns."""
    store = bucket({"b/2": b"x", "a/1": b"x", "b/3": b"x"})

    assert listed(store, "b/*", "b", "b/3", "a/1") == ["a/1", "b/2", "b/3"]


@pytest.mark.parametrize(
    ("name", "compression"),
    [
        ("a.fasta", Compression.NONE),
        ("a.fasta.gz", Compression.GZIP),
        ("A.FASTA.GZ", Compression.GZIP),
        ("a.bgz", Compression.BGZF),
        ("a.fa.bgzf", Compression.BGZF),
        ("gz", Compression.NONE),
    ],
)
def test_the_name_says_how_an_object_is_compressed(name: str, compression: Compression) -> None:
    """Nothing is read for it."""
    store = bucket({name: b"x"})

    (item,) = list_inputs([f"s3://bucket/{name}"], shard_bytes=1, open_store=lambda _: store)

    assert item.compression is compression
    assert store.num_gets == 0


def test_a_large_gz_that_is_block_gzip_can_be_cut() -> None:
    """Its first bytes say so; a small one is one shard either way and costs no request."""
    text = bytes(range(256))
    large_block, large_plain, small = bgzf(text), gzip.compress(text), bgzf(b"x")
    store = bucket({"block.fa.gz": large_block, "plain.fa.gz": large_plain, "small.fa.gz": small})
    assert min(len(large_block), len(large_plain)) > 100 > len(small)

    found = list_inputs(["s3://bucket/", "s3://bucket/*.gz"], shard_bytes=100, open_store=lambda _: store)

    assert [(item.uri.rpartition("/")[2], item.compression) for item in found] == [
        ("block.fa.gz", Compression.BGZF),
        ("plain.fa.gz", Compression.GZIP),
        ("small.fa.gz", Compression.GZIP),
    ]
    assert store.num_gets == 2


@pytest.mark.parametrize(
    ("key", "num_listed"),
    [("*.fasta", 1), ("in/b*.fasta", 2), ("in/[ab]*", 5), ("in/**", 500), ("in/b/*/a.fasta", 495)],
)
def test_a_pattern_lists_no_deeper_than_it_reaches(key: str, num_listed: int) -> None:
    """A wildcard in the last name costs a listing of its level, not of all the thousands of objects below it."""
    deep = {f"in/b/{number}/a.fasta": b"x" for number in range(495)}
    store = bucket({"top.fasta": b"x", **{f"in/{name}.fasta": b"x" for name in ("a", "a2", "b", "b2", "c")}, **deep})

    listed(store, key)

    assert store.num_listed == num_listed


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("a.fa.zst", ".zst is not read: recompress it with bgzip"),
        ("a.fa.BZ2", ".bz2 is not read"),
        ("a.fa.xz", ".xz is not read"),
        ("a.zip", "archives are not read: unpack it"),
        ("a.tar.gz", "archives are not read: unpack it"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name: str, detail: str) -> None:
    """Before any worker starts, with the remedy."""
    store = bucket({"in/b.fasta": b"x", f"in/{name}": b"x"})

    with pytest.raises(SpecError) as caught:
        listed(store, "in")

    assert f"s3://bucket/in/{name}: " in str(caught.value)
    assert detail in str(caught.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "in/deep/x.fasta",
            "{} names no object, and nothing exists below it; the nearest place that exists is s3://bucket/in/deep/",
        ),
        ("in/nowhere/far/*.fasta", "{} matches no object; the nearest place that exists is s3://bucket/in/"),
        ("in/nowhere/", "nothing exists below {}; the nearest place that exists is s3://bucket/in/"),
        (
            "in/dee",
            "{} names no object, and nothing exists below it; the nearest place that exists is s3://bucket/in/",
        ),
        (
            "in/hidden/",
            "all below {} is skipped, as names with '.' or '_' before or '~' behind are; the nearest place that exists is s3://bucket/in/",
        ),
        ("out/*", "{} matches no object; of its path nothing exists in s3://bucket/"),
    ],
)
def test_a_uri_that_names_nothing_is_refused(key: str, message: str) -> None:
    """The message says what is not there (an object, a match, anything below), and how far the path is right."""
    store = bucket({"in/deep/a.fasta": b"x", "in/hidden/_SUCCESS": b""})

    with pytest.raises(SpecError) as caught:
        listed(store, "in/deep/a.fasta", key)

    assert str(caught.value) == "input.uris: " + message.format(f"'s3://bucket/{key}'")


@pytest.mark.parametrize("pattern", ["", "/*.fasta"])
def test_a_file_whose_name_is_no_text_is_refused(tmp_path: Path, pattern: str) -> None:
    """A name in Latin-1 cannot stand in a plan: an error that names the file, and a pattern may leave it out."""
    (tmp_path / "a.fasta").write_text(">a\nMK\n")
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.fasta")).write_text(">b\nMK\n")

    with pytest.raises(SpecError, match=r"caf.*\.fasta'?: the name is not UTF-8.*rename the file"):
        list_inputs([f"{tmp_path}{pattern}"], shard_bytes=1000)

    assert len(list_inputs([f"{tmp_path}/a*"], shard_bytes=1000)) == 1


def test_a_path_that_names_nothing_is_refused(tmp_path: Path) -> None:
    """Also below an empty directory."""
    (tmp_path / "empty").mkdir()

    with pytest.raises(SpecError, match=f"the nearest place that exists is file://{tmp_path}/empty/"):
        list_inputs([f"{tmp_path}/empty/a/*.fasta"], shard_bytes=10)


def test_an_input_without_any_byte_is_refused() -> None:
    """Beside others an empty object is fine."""
    store = bucket({"a": b"", "b": b"", "c": b"x"})

    assert listed(store, "a", "c") == ["a", "c"]
    with pytest.raises(SpecError, match="no records: all 2 objects are empty"):
        listed(store, "a", "b")


def test_no_uri_at_all_is_refused() -> None:
    """An empty list is a mistake, not an empty run."""
    with pytest.raises(SpecError, match=r"input\.uris is empty"):
        list_inputs([], shard_bytes=10)


def test_store_errors_reach_the_caller() -> None:
    """A store that does not answer is not an input that is missing; also while large objects are looked into."""

    class Down(MemoryStore):
        def get(self, key: str, *, start: int = 0, end: int | None = None) -> Stored:
            raise Unavailable(key, "503")

    store = Down("s3://bucket")
    store.put_create("a.gz", b"x" * 50)

    with pytest.raises(Unavailable):
        listed(store, "a.gz", shard_bytes=10)


def test_a_bucket_name_cannot_be_a_pattern() -> None:
    """Buckets are not listed."""
    with pytest.raises(SpecError, match="names no bucket"):
        list_inputs(["s3://buck*/a"], shard_bytes=10)
