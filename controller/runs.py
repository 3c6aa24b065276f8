"""All runs of this controller: one task each, and what they must know of one another.

The watch of runs is kopf's. Its list after a gap reports no deletions, and a watch that has died in silence looks like
one on which nothing happens; so the runs are listed here once a minute, too: what is gone is let go, what is new is taken
in, and a change that the watch has not shown by the next list says that the watch is stale.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from contract.errors import SpecError
from contract.store.open import normalised_uri
from controller import ledger
from controller.api import InferenceRun
from controller.cluster import RUNS, ApiError, ApiUnavailable, Cluster, Object, group_path, run_path
from controller.pods import PodFacts
from controller.reconciler import OVER, RunReconciler
from controller.watches import is_newer

logger = logging.getLogger(__name__)

LIST_S = 60.0
DEFINED_S = 1.0
"""Between two looks for the definition of runs, while it is not there."""


@dataclass(slots=True)
class _Entry:
    reconciler: RunReconciler
    task: asyncio.Task[None]


class Runs:
    """The runs by uid. For one event loop."""

    def __init__(self, *, make: Callable[[Object], RunReconciler]) -> None:
        """`make` makes the reconciler of a run."""
        self._make = make
        self._entries: dict[str, _Entry] = {}
        self._watched: dict[str, str] = {}
        """Newest resourceVersion that the watch has shown, by uid."""
        self._unwatched_since_s: dict[str, tuple[str, float]] = {}
        self._listed_at_s = time.monotonic()
        self.is_defined = False
        """Whether the server has been seen to have such a resource."""

    def watched(self, resource: Object, *, is_deleted: bool) -> None:
        """The watch has shown a run."""
        uid = resource["metadata"]["uid"]
        self._watched[uid] = resource["metadata"]["resourceVersion"]
        self._unwatched_since_s.pop(uid, None)
        if is_deleted:
            self._drop(uid)
        else:
            self._saw(resource)

    def wake(self, pod: PodFacts) -> None:
        """A pod has changed: its run, or one of the same name that waits for it, must look."""
        entry = self._entries.get(pod.run_uid)
        if entry is not None:
            entry.reconciler.wake()
            return
        for other in self._entries.values():
            key = other.reconciler.key
            if key.namespace == pod.namespace and key.name.startswith(pod.run[:40]):
                other.reconciler.wake()

    def resources(self) -> list[Object]:
        """The newest version of each run."""
        return [entry.reconciler.resource for entry in self._entries.values()]

    @property
    def stale_s(self) -> float:
        """Seconds for which the watch, or the list, has been behind."""
        now_s = time.monotonic()
        since_s = min((at_s for _, at_s in self._unwatched_since_s.values()), default=now_s)
        return max(now_s - since_s, now_s - self._listed_at_s - LIST_S)

    def rival_of(self, uid: str, run: InferenceRun) -> str | None:
        """Which other run works on the same output, None when there is none. The one that was there first has it."""
        mine = self._entries[uid].reconciler.resource
        for other_uid, entry in self._entries.items():
            theirs = entry.reconciler.resource
            if (
                other_uid == uid
                or (theirs.get("status") or {}).get("phase") in OVER
                or _output(theirs) != run.spec.output.uri
            ):
                continue
            if _precedence(theirs) < _precedence(mine):
                key = entry.reconciler.key
                return (
                    f"spec.output.uri: run {key.namespace}/{key.name} works on {run.spec.output.uri}; "
                    "choose another output, or wait until that run has ended or is deleted"
                )
        return None

    async def wait_until_defined(self, cluster: Cluster) -> None:
        """Return once the server has runs: kopf, which watches them, looks for them only once."""
        is_told = False
        while not await _are_defined(cluster):
            if not is_told:
                logger.error("no definition of runs", extra={"detail": "install the chart's CRD, or deploy/crd.yaml"})
                is_told = True
            await asyncio.sleep(DEFINED_S)
        self.is_defined = True
        self._listed_at_s = time.monotonic()

    async def keep_listed(
        self, cluster: Cluster, namespace: str, *, tell: Callable[[Collection[str]], None] = lambda _uids: None
    ) -> None:
        """List for ever; `tell` is told each time of all runs that there are, by uid."""
        while True:
            try:
                listed, version = await cluster.list_all(run_path(namespace))
            except (ApiError, ApiUnavailable) as error:
                logger.warning("runs not listed", extra={"detail": str(error)})
            else:
                self._listed(listed, version)
                tell(self._entries.keys())
            await asyncio.sleep(LIST_S)

    async def stop(self) -> None:
        """End all tasks; what they were about to do is done by the next controller."""
        tasks = [entry.task for entry in self._entries.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _listed(self, listed: list[Object], version: str) -> None:
        self._listed_at_s = time.monotonic()
        present = {item["metadata"]["uid"] for item in listed}
        for item in listed:
            self._saw(item)
            self._compare_with_watch(item)
        for uid, entry in list(self._entries.items()):
            if uid not in present and is_newer(version, entry.reconciler.resource["metadata"]["resourceVersion"]):
                self._drop(uid)

    def _compare_with_watch(self, item: Object) -> None:
        uid, version = item["metadata"]["uid"], item["metadata"]["resourceVersion"]
        seen = self._watched.get(uid)
        if seen is not None and not is_newer(version, seen):
            self._unwatched_since_s.pop(uid, None)
        else:
            self._unwatched_since_s.setdefault(uid, (version, time.monotonic()))

    def _saw(self, resource: Object) -> None:
        uid = resource["metadata"]["uid"]
        entry = self._entries.get(uid)
        if entry is not None:
            entry.reconciler.saw(resource)
            return
        reconciler = self._make(resource)
        task = asyncio.create_task(reconciler.work(), name=f"run {reconciler.key.namespace}/{reconciler.key.name}")
        self._entries[uid] = _Entry(reconciler, task)
        # A run that was read as gone ends its task by itself.
        task.add_done_callback(lambda _task: self._entries.pop(uid, None))

    def _drop(self, uid: str) -> None:
        self._watched.pop(uid, None)
        self._unwatched_since_s.pop(uid, None)
        entry = self._entries.get(uid)
        if entry is not None:
            entry.reconciler.gone()
            # Whoever waited for its output, or for its pods' names, may go on.
            for other in self._entries.values():
                other.reconciler.wake()


async def _are_defined(cluster: Cluster) -> bool:
    try:
        found = await cluster.get(group_path())
    except (ApiError, ApiUnavailable):
        return False
    return any(item["name"] == RUNS for item in found["resources"])


def _output(resource: Object) -> str | None:
    """Normalised output of a run, None when it has none that can be used."""
    uri = ((resource.get("spec") or {}).get("output") or {}).get("uri")
    try:
        return normalised_uri(uri) if isinstance(uri, str) else None
    except SpecError:
        return None


def _precedence(resource: Object) -> tuple[bool, str, str]:
    """Who has an output: whoever has begun to work on it, then the older."""
    has_begun = bool(ledger.from_status(resource.get("status") or {}).output_uri)
    metadata = resource["metadata"]
    return (not has_begun, metadata["creationTimestamp"], metadata["uid"])
