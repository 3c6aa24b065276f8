"""One input object in a store, as planned: ranged reads that ride out what passes and refuse an object that changed."""

from __future__ import annotations

from collections.abc import Callable

from contract.errors import InvalidInput
from contract.plan import InputObject
from contract.store.commit import Patience
from contract.store.errors import NotFound, Unavailable
from contract.store.inputs import OpenStore
from contract.store.open import open_store, split_object_uri
from contract.store.protocol import ObjectStore, Stored

_REMEDY = "start a new generation (resume: Restart), and leave input objects alone while a run reads them"


class StoreSource:
    """A ByteSource over an object of a store."""

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        *,
        uri: str,
        size: int,
        etag: str,
        patience: Callable[[], Patience] = Patience,
    ) -> None:
        """`uri`, `size` and `etag` are those of the plan; `patience` is asked once per read."""
        self._store = store
        self._key = key
        self._uri = uri
        self._size = size
        self._etag = etag
        self._patience = patience

    @property
    def uri(self) -> str:
        """The object's URI, for messages."""
        return self._uri

    @property
    def size(self) -> int:
        """Stored bytes of the object, as planned."""
        return self._size

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, min(end, size)).

        Raises:
            InvalidInput: the object changed or went away since it was planned.
            Unavailable: the store did not answer in time (see Patience), on top of its own retries of reads.
            AccessDenied: at once.
        """
        end = min(end, self._size)
        if start >= end:
            return b""
        patience = self._patience()
        while True:
            try:
                stored = self._get(start, end)
            except Unavailable as error:
                patience.wait(error)
            else:
                return stored.body

    def _get(self, start: int, end: int) -> Stored:
        try:
            stored = self._store.get(self._key, start=start, end=end)
        except NotFound as error:
            raise InvalidInput(f"{self._uri}: the object is gone since it was planned; {_REMEDY}") from error
        if stored.etag != self._etag:
            raise InvalidInput(
                f"{self._uri}: the object has changed since it was planned (ETag {stored.etag}, planned {self._etag}); "
                f"{_REMEDY}"
            )
        if len(stored.body) != end - start:  # the planned object has these bytes: the reply was cut
            raise Unavailable(self._key, f"got {len(stored.body)} of the {end - start} bytes [{start}, {end})")
        return stored


def open_source(planned: InputObject, *, open_store: OpenStore = open_store) -> StoreSource:
    """The planned object in its own store. Opens no connection."""
    root, key = split_object_uri(planned.uri)
    return StoreSource(open_store(root), key, uri=planned.uri, size=planned.size, etag=planned.etag)
