"""From a URI to an object store. Nothing in a URI is percent-encoded: path or key stand there as they are.

s3://bucket[/prefix]        S3 and S3-compatible stores; the endpoint comes from AWS_ENDPOINT_URL_S3 or the profile
gs://bucket[/prefix]        Google Cloud Storage; needs the extra `gcs`
file:///absolute/directory  a directory on this host; also file:relative and a plain path
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from contract.errors import SpecError
from contract.store.gcs import GcsStore
from contract.store.local import LocalStore
from contract.store.protocol import ObjectStore
from contract.store.s3 import S3Store

_POSSIBLE = "use s3://bucket/prefix, gs://bucket/prefix, file:///absolute/path or a plain path"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_BUCKETS: dict[str, Callable[[str, str], ObjectStore]] = {"s3": S3Store, "gs": GcsStore}
"""Schemes whose URIs begin with a bucket."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def open_store(uri: str) -> ObjectStore:
    """The store at `uri`. Opens no connection and makes no directory.

    Raises:
        SpecError: no such kind of store; the message says what is possible.
    """
    scheme, rest = _split(uri)
    if scheme in _BUCKETS:
        bucket, _, prefix = rest.partition("/")
        return _BUCKETS[scheme](bucket, prefix)
    return LocalStore(rest)


def endpoint_of(store: ObjectStore) -> str:
    """URL that the store's requests go to; empty where none do."""
    return store.endpoint if isinstance(store, S3Store | GcsStore) else ""


def normalised_uri(uri: str) -> str:
    """Absolute form without a trailing slash: equal for all ways to write one place."""
    scheme, rest = _split(uri)
    return f"{scheme}://{rest.rstrip('/')}"


def is_path(uri: str) -> bool:
    """Whether it names files, `file:` or not. Pure."""
    match = _SCHEME.match(uri)
    return match is None or match[1].lower() == "file"


def is_relative(uri: str) -> bool:
    """Whether it is a path that means another place to a process with another working directory. Pure."""
    return is_path(uri) and not re.sub(r"^file:", "", uri, flags=re.IGNORECASE).startswith("/")


def split_object_uri(uri: str) -> tuple[str, str]:
    """(URI of the store to open, key in it) of one object.

    Examples: `s3://bucket/a/b` is `a/b` in `s3://bucket`; `file:///d/x` is `x` in `file:///d`.
    """
    scheme, rest = _split(uri)
    root, _, key = rest.partition("/") if scheme in _BUCKETS else rest.rpartition("/")
    if not key:
        raise SpecError(f"{uri!r} names no object: add its key or file name")
    return f"{scheme}://{root}", key


def _split(uri: str) -> tuple[str, str]:
    """(scheme, bucket and key, or absolute path)."""
    match = _SCHEME.match(uri)
    scheme, rest = (match[1].lower(), uri[match.end() :]) if match else ("file", uri)
    if scheme in _BUCKETS and rest.startswith("//"):
        if not _BUCKET.fullmatch(rest[2:].partition("/")[0]):
            raise SpecError(f"{uri!r} names no bucket: write {scheme}://bucket or {scheme}://bucket/prefix")
        return scheme, rest[2:]
    if scheme == "file" and match and rest.startswith("//"):
        rest = rest[2:] or "/"
        if not rest.startswith("/"):
            raise SpecError(f"{uri!r}: two slashes begin a host name; {_POSSIBLE}")
    if scheme == "file" and rest:
        return scheme, _absolute(rest)
    raise SpecError(f"{uri!r} is no store: {_POSSIBLE}")


def _absolute(path: str) -> str:
    trailing = "/" if path.endswith("/") else ""
    return os.path.abspath(path).rstrip("/") + trailing  # noqa: PTH100  (resolve() would follow links)
