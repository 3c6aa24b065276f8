"""Input URIs expanded to objects, by listing alone (and a look at the first bytes of large .gz objects).

s3://bucket/in/a.fasta       one object; gs:// alike
s3://bucket/in/, /data/in    all objects below; names that begin with '.' or '_' or end with '~' or '.tmp' are skipped
/data/**/part-?[0-9].fasta   a pattern: '*', '?', '[...]' within a name, '**' for any number of directories; as in a
                             shell a wildcard does not match a leading '.', and '[*]' stands for the letter itself
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from contract.bgzf import block_bytes
from contract.errors import SpecError
from contract.plan import Compression, InputObject
from contract.store.open import normalised_uri, open_store
from contract.store.protocol import Listed, ObjectStore

OpenStore = Callable[[str], ObjectStore]

NUM_PEEK_THREADS = 16
"""A peek is one round trip, so 10,000 large objects take about 20 s at 30 ms each."""
_PEEK_BYTES = 64
"""The BC field stands first in every header seen in the wild; there is room for a small field before it."""

_WILDCARDS = "*?["
_COMPRESSIONS = {".gz": Compression.GZIP, ".bgz": Compression.BGZF, ".bgzf": Compression.BGZF}
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".7z", ".rar")
_OTHER_COMPRESSIONS = (".zst", ".bz2", ".xz", ".lz4", ".lzma", ".z")


@dataclass(frozen=True, slots=True)
class _Place:
    """A URI taken apart."""

    root: str
    """URI of the bucket, or of the root directory."""
    key: str
    """What the user wrote below the root, without a trailing slash."""
    is_directory: bool
    """Written with a trailing slash."""

    @property
    def is_pattern(self) -> bool:
        return any(letter in self.key for letter in _WILDCARDS)

    @property
    def literal(self) -> str:
        """The key up to its first wildcard."""
        return self.key[: min(self.key.find(letter) for letter in _WILDCARDS if letter in self.key)]


def list_inputs(
    uris: Iterable[str], *, shard_bytes: int, open_store: OpenStore = open_store
) -> tuple[InputObject, ...]:
    """All objects that `uris` name, each once, in URI order.

    Args:
        uris: objects, directories (key prefixes) and patterns.
        shard_bytes: a .gz object above this size is looked into: block gzip can be cut, plain gzip cannot.
        open_store: how a root URI becomes a store.

    Raises:
        SpecError: a URI that names nothing, an object that cannot be read, or no record at all; with the remedy.
        StoreError: the stores'.
    """
    found: dict[str, InputObject] = {}
    large_gzip: list[tuple[ObjectStore, str, str]] = []
    for uri in uris:
        place = _place(uri)
        store = open_store(place.root)
        listed = list(_expanded(store, place))
        if not listed:
            raise SpecError(f"input.uris: {_absence(store, place, uri)}; {_nearest(store, place)}")
        for item in listed:
            item_uri = f"{place.root}{item.key}"
            if not _is_utf8(item_uri):
                raise SpecError(
                    f"input.uris: {item_uri!r}: the name is not UTF-8, so no plan can hold it: rename the file, or leave it "
                    "out with a pattern"
                )
            compression = _compression(item_uri)
            if item_uri not in found and compression is Compression.GZIP and item.size > shard_bytes:
                large_gzip.append((store, item.key, item_uri))
            found[item_uri] = InputObject(uri=item_uri, size=item.size, etag=item.etag, compression=compression)
    if not found:
        raise SpecError("input.uris is empty: name at least one object, directory or pattern")
    if not any(item.size for item in found.values()):
        raise SpecError(f"input.uris: no records: all {len(found)} objects are empty")
    for uri in _block_gzip(large_gzip):
        found[uri] = replace(found[uri], compression=Compression.BGZF)
    return tuple(sorted(found.values(), key=lambda item: item.uri))


def comparable(uris: Iterable[str]) -> tuple[str, ...]:
    """`uris` in one spelling and order: equal for all ways to name the same places. Lists nothing. Raises SpecError."""
    return tuple(sorted({normalised_uri(uri) + ("/" if uri.endswith("/") else "") for uri in uris}))


def _place(uri: str) -> _Place:
    scheme, _, rest = normalised_uri(uri).partition("://")
    authority, _, key = rest.partition("/")
    return _Place(root=f"{scheme}://{authority}/", key=key, is_directory=uri.endswith("/") or not key)


def _expanded(store: ObjectStore, place: _Place) -> Iterator[Listed]:
    if place.is_pattern:
        pattern = [*place.key.split("/"), *(["**"] if place.is_directory else [])]
        wild = place.key.removeprefix(place.literal)
        is_deep = place.is_directory or "/" in wild or wild.startswith("**")
        found = store.list(place.literal, is_deep=is_deep)
        return (item for item in found if _matches(item.key.split("/"), pattern))
    # An object sorts before everything its name is a prefix of, so one item tells.
    first = None if place.is_directory else next(iter(store.list(place.key)), None)
    if first is not None and first.key == place.key:
        return iter((first,))
    prefix = f"{place.key}/" if place.key else ""
    return (item for item in store.list(prefix) if not _is_hidden(item.key.removeprefix(prefix)))


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Whether the names of a key fit the pattern, name by name. Pure."""
    if not names or not pattern:
        return not names and not pattern
    if pattern == ["**"]:
        return not any(name.startswith(".") for name in names)
    if pattern[0] == "**":
        return _matches(names, pattern[1:]) or (not names[0].startswith(".") and _matches(names[1:], pattern))
    if names[0].startswith(".") and not pattern[0].startswith("."):
        return False
    return fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _is_hidden(key: str) -> bool:
    return any(name.startswith((".", "_")) or name.endswith(("~", ".tmp")) for name in key.split("/"))


def _is_utf8(name: str) -> bool:
    """Whether a file's name is text; Python gives bytes that are none as lone surrogates. Pure."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _compression(uri: str) -> Compression:
    """How an object is compressed, by its name. Pure."""
    name = uri.rpartition("/")[2].lower()
    for suffix in _ARCHIVES:
        if name.endswith(suffix):
            raise SpecError(f"input.uris: {uri}: archives are not read: unpack it, or leave it out with a pattern")
    for suffix in _OTHER_COMPRESSIONS:
        if name.endswith(suffix):
            raise SpecError(
                f"input.uris: {uri}: {suffix} is not read: recompress it with bgzip (then it can be shared by many "
                "workers) or gzip, or leave it out with a pattern"
            )
    return next((found for suffix, found in _COMPRESSIONS.items() if name.endswith(suffix)), Compression.NONE)


def _block_gzip(objects: list[tuple[ObjectStore, str, str]]) -> Iterator[str]:
    """URIs of those that are block gzip: most large .fasta.gz in the wild, where bgzip keeps the name of gzip."""

    def peek(item: tuple[ObjectStore, str, str]) -> bool:
        store, key, _ = item
        return block_bytes(store.get(key, start=0, end=_PEEK_BYTES).body) is not None

    with ThreadPoolExecutor(NUM_PEEK_THREADS) as pool:
        for (_, _, uri), is_block_gzip in zip(objects, pool.map(peek, objects), strict=True):
            if is_block_gzip:
                yield uri


def _absence(store: ObjectStore, place: _Place, uri: str) -> str:
    """What is not there, in the sense in which it was written, for the message."""
    if place.is_pattern:
        return f"{uri!r} matches no object"
    if not place.is_directory:
        return f"{uri!r} names no object, and nothing exists below it"
    if next(iter(store.list(f"{place.key}/" if place.key else "")), None) is not None:
        return f"all below {uri!r} is skipped, as names with '.' or '_' before or '~' behind are"
    return f"nothing exists below {uri!r}"


def _nearest(store: ObjectStore, place: _Place) -> str:
    """What exists of a place that names nothing, for the message."""
    above = place.literal if place.is_pattern else place.key
    while "/" in above:
        above = above.rpartition("/")[0]
        if _exists(store, place, above):
            return f"the nearest place that exists is {place.root}{above}/"
    return f"of its path nothing exists in {place.root}"


def _exists(store: ObjectStore, place: _Place, directory: str) -> bool:
    if place.root == "file:///":  # also an empty directory; and a listing could walk half the disk to find a file
        return Path("/", directory).is_dir()
    return next(iter(store.list(f"{directory}/")), None) is not None
