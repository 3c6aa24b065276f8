"""From URIs to stores and keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import SpecError
from contract.store.gcs import GcsStore
from contract.store.local import LocalStore
from contract.store.open import endpoint_of, is_path, is_relative, normalised_uri, open_store, split_object_uri
from contract.store.s3 import S3Store


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("S3://bucket/A", "s3://bucket/A"),
        ("gs://bucket/a/b/", "gs://bucket/a/b"),
        ("file:///d/x", "file:///d/x"),
        ("file:///d/./y/../x//", "file:///d/x"),
        ("file:/d/x", "file:///d/x"),
        ("file:///", "file://"),
        ("file://", "file://"),
        ("/d/x/", "file:///d/x"),
        ("/d/a b%20c", "file:///d/a b%20c"),
        ("file:rel/x", "file://{cwd}/rel/x"),
        ("rel/x/", "file://{cwd}/rel/x"),
        (".", "file://{cwd}"),
    ],
)
def test_one_form_for_every_way_to_write_a_place(
    uri: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The normalised form is absolute, is that of the opened store, and is its own normalised form."""
    monkeypatch.chdir(tmp_path)
    wanted = expected.format(cwd=tmp_path)

    assert normalised_uri(uri) == wanted
    assert normalised_uri(wanted) == wanted
    assert open_store(uri).uri == wanted
    assert open_store(wanted).uri == wanted


@pytest.mark.parametrize(
    ("uri", "root", "key"),
    [
        ("s3://bucket/a/b.fasta", "s3://bucket", "a/b.fasta"),
        ("s3://bucket/a", "s3://bucket", "a"),
        ("gs://bucket/a/b.fasta", "gs://bucket", "a/b.fasta"),
        ("file:///d/x.fasta", "file:///d", "x.fasta"),
        ("file:///x", "file://", "x"),
        ("/d/e/x y.gz", "file:///d/e", "x y.gz"),
    ],
)
def test_an_object_is_a_store_and_a_key(uri: str, root: str, key: str) -> None:
    """The two parts join to the object's normalised URI."""
    assert split_object_uri(uri) == (root, key)
    assert f"{root}/{key}" == normalised_uri(uri)


def test_an_object_is_found_by_its_uri(tmp_path: Path) -> None:
    """Opening the first part and reading the second reads the object."""
    (tmp_path / "in.fasta").write_bytes(b">a\n")

    root, key = split_object_uri(str(tmp_path / "in.fasta"))

    assert open_store(root).get(key).body == b">a\n"


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "file:///d/", "file:///"])
def test_a_store_is_no_object(uri: str) -> None:
    """A URI without a key is refused where an object is meant."""
    with pytest.raises(SpecError, match="names no object"):
        split_object_uri(uri)


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("", "use s3://"),
        ("file:", "use s3://"),
        ("http://host/x", "use s3://"),
        ("s3:bucket/x", "use s3://"),
        ("gs:bucket/x", "use s3://bucket/prefix, gs://bucket/prefix"),
        ("file://host/x", "two slashes"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://-x/y", "names no bucket"),
        ("s3://b?c/y", "names no bucket"),
        ("gs:///x", "names no bucket: write gs://bucket"),
    ],
)
def test_anything_else_says_what_is_possible(uri: str, remedy: str) -> None:
    """A URI that is no store is a SpecError with the way to write one, from every function."""
    for function in (open_store, normalised_uri, split_object_uri):
        with pytest.raises(SpecError, match=remedy):
            function(uri)


def test_the_scheme_decides() -> None:
    """s3:// and gs:// open buckets without a connection, everything else a directory."""
    assert isinstance(open_store("s3://bucket/prefix"), S3Store)
    assert isinstance(open_store("gs://bucket/prefix"), GcsStore)
    assert isinstance(open_store("data"), LocalStore)


@pytest.mark.parametrize(
    ("uri", "is_file", "means_another_place_elsewhere"),
    [
        ("s3://bucket/out", False, False),
        ("gs://bucket/out", False, False),
        ("/data/out", True, False),
        ("file:///data/out", True, False),
        ("out", True, True),
        ("./out", True, True),
        ("file:out", True, True),
    ],
)
def test_paths_are_told_from_buckets(uri: str, is_file: bool, means_another_place_elsewhere: bool) -> None:  # noqa: FBT001
    """And those that depend on the working directory from those that do not."""
    assert (is_path(uri), is_relative(uri)) == (is_file, means_another_place_elsewhere)


def test_the_endpoint_of_a_store_is_where_its_requests_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the environment names it; a directory has none."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store:9000")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", "https://private.example")

    found = [endpoint_of(open_store(uri)) for uri in ("s3://bucket", "gs://bucket", "/data")]

    assert found == ["http://store:9000", "https://private.example", ""]
