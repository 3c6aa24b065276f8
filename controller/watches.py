"""A cache of objects that stays true: list, then watch, and list again every few minutes.

What a watch misses (an object that went while it was down) comes to light by comparing each list with the cache, which
reports it as gone. `silent_s` says how long nothing has been heard of the server: what probes ask. It never ends by
itself; an API server that is away is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from controller.cluster import ApiError, ApiUnavailable, Cluster, HistoryExpired, Object, ObjectMissing

logger = logging.getLogger(__name__)

RELIST_S = 600.0
"""A missed deletion is noticed after so long at the latest."""
MAX_BACKOFF_S = 15.0


class Versioned(Protocol):
    """What a cache holds."""

    @property
    def resource_version(self) -> str:
        """Of the object it was read from."""
        ...


T = TypeVar("T", bound=Versioned)


class Reflector(Generic[T]):
    """Keeps `entries`, by uid, equal to what the server has; `run` it as a task."""

    def __init__(
        self,
        cluster: Cluster,
        path: str,
        parse: Callable[[Object], T],
        *,
        changed: Callable[[T | None, T], None] = lambda _old, _new: None,
        gone: Callable[[T], None] = lambda _old: None,
        **parameters: str,
    ) -> None:
        """Nothing is asked before `run`.

        Args:
            cluster: where.
            path: of the collection.
            parse: what to keep of an object.
            changed: told of each change: (before or None, after).
            gone: told of each object that went, with the last that was seen of it.
            parameters: labelSelector and the like.
        """
        self._cluster = cluster
        self._path = path
        self._parse = parse
        self._changed = changed
        self._gone = gone
        self._parameters = parameters
        self.entries: dict[str, T] = {}
        self.synced = asyncio.Event()
        """Set once the first list is in."""
        self._heard_at_s = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the server was last heard of."""
        return time.monotonic() - self._heard_at_s

    async def run(self) -> None:
        """List and watch for ever."""
        num_failures = 0
        while True:
            try:
                await self._list_and_watch()
                num_failures = 0
            except HistoryExpired:
                continue
            except (ApiError, ApiUnavailable) as error:
                num_failures += 1
                wait_s = random.uniform(0.5, 1.0) * min(MAX_BACKOFF_S, 2.0**num_failures / 2)  # noqa: S311  (jitter)
                logger.warning(
                    "watch interrupted",
                    extra={"path": self._path, "detail": str(error), "retry_s": round(wait_s, 1)},
                )
                await asyncio.sleep(wait_s)

    def put(self, found: Object, *, resource_version: str | None = None) -> None:
        """Take in an object that a request has returned, unless something newer is here already."""
        uid = found["metadata"]["uid"]
        entry = self._parse(found)
        before = self.entries.get(uid)
        if before is not None and not is_newer(resource_version or entry.resource_version, before.resource_version):
            return
        self.entries[uid] = entry
        self._changed(before, entry)

    def drop(self, uid: str) -> None:
        """Take out an object that is known to be gone."""
        before = self.entries.pop(uid, None)
        if before is not None:
            self._gone(before)

    async def _list_and_watch(self) -> None:
        listed, version = await self._cluster.list_all(self._path, **self._parameters)
        self._heard_at_s = time.monotonic()
        present = {item["metadata"]["uid"] for item in listed}
        for item in listed:
            self.put(item)
        # What was put in since by a request of ours is newer than the list.
        missing = [uid for uid, entry in self.entries.items() if uid not in present]
        for uid in missing:
            if not is_newer(self.entries[uid].resource_version, version):
                self.drop(uid)
        self.synced.set()
        relist_at_s = time.monotonic() + RELIST_S * random.uniform(0.8, 1.2)  # noqa: S311  (spreads load)
        while time.monotonic() < relist_at_s:
            async for kind, found in self._cluster.watch(self._path, since=version, **self._parameters):
                self._heard_at_s = time.monotonic()
                version = found["metadata"]["resourceVersion"]
                self._apply(kind, found)

    def _apply(self, kind: str, found: Object) -> None:
        if kind == "DELETED":
            # The event holds the last state, which may say why it ended.
            self.put(found)
            self.drop(found["metadata"]["uid"])
        elif kind in {"ADDED", "MODIFIED"}:
            self.put(found)


def is_newer(version: str, than: str) -> bool:
    """Whether a resourceVersion is newer. They are numbers on every server that exists, though not by contract."""
    if version.isdecimal() and than.isdecimal():
        return int(version) > int(than)
    return version != than


async def exists(cluster: Cluster, path: str) -> dict[str, Any] | None:
    """The object at a path, None when there is none."""
    try:
        return await cluster.get(path)
    except ObjectMissing:
        return None
