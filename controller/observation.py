"""Worker pods and nodes as the watches show them, and the wake-ups that follow from their changes.

Pods that were deleted stay here as they were last seen, until the planner has taken note of their end: an evicted pod may
be gone a moment after it said why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from contract import names
from controller.cluster import Cluster, Object, core_path
from controller.observed import NodeState, WorkerView
from controller.pod_template import label_value
from controller.pods import GONE, NodeFacts, PodFacts, gone, gone_node, read_node, read_pod, worker_view
from controller.watches import Reflector, exists

FORGOTTEN_KEPT = 10_000
"""Uids of pods whose end has been taken note of, and of runs that are gone, remembered for what is reported late."""
GONE_NODES_KEPT = 1_000
"""Nodes that are gone, as they were last seen: whether they were spot nodes decides what their pods died of."""


@dataclass(frozen=True, slots=True)
class RunKey:
    """What tells the pods of a run."""

    namespace: str
    name: str
    uid: str


class Observation:
    """All worker pods and all nodes. For one event loop; `tasks` keep it true."""

    def __init__(
        self, cluster: Cluster, *, namespace: str, wake: Callable[[PodFacts], None], watches_nodes: bool = True
    ) -> None:
        """Watch nothing yet.

        Args:
            cluster: where.
            namespace: of the pods; empty = all.
            wake: told of each pod whose change a reconcile must see.
            watches_nodes: whether nodes may be read; otherwise nothing is known of them.
        """
        self._cluster = cluster
        self._wake = wake
        self._watches_nodes = watches_nodes
        self._ended: dict[str, PodFacts] = {}
        self._forgotten: dict[str, None] = {}
        self._gone_runs: dict[str, None] = {}
        self._index: dict[str | tuple[str, str], set[str]] = {}
        """Uids of pods, by uid of their run, and by namespace and name of it."""
        self._node_uids: dict[str, str] = {}
        self._gone_nodes: dict[str, NodeFacts] = {}
        self.pods = Reflector(
            cluster,
            core_path(namespace, "pods"),
            read_pod,
            changed=self._pod_changed,
            gone=self._pod_gone,
            labelSelector=f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}",
        )
        self.nodes = Reflector(
            cluster, core_path("", "nodes"), read_node, changed=self._node_changed, gone=self._node_gone
        )

    def tasks(self) -> list[asyncio.Task[None]]:
        """Start the watches."""
        watches = {"pods": self.pods.run, **({"nodes": self.nodes.run} if self._watches_nodes else {})}
        return [asyncio.create_task(run(), name=f"watch of {kind}") for kind, run in watches.items()]

    def pods_of(self, run: RunKey) -> list[PodFacts]:
        """Pods of the run and of earlier runs of its name, deleted ones too, until they are forgotten."""
        uids = self._index.get(run.uid, set()) | self._index.get((run.namespace, label_value(run.name)), set())
        found = [pod for uid in uids - self._forgotten.keys() if (pod := self.pod(uid)) is not None]
        return sorted(found, key=lambda pod: (pod.slot, pod.attempt, pod.uid))

    async def views_of(self, run: RunKey, now: datetime) -> tuple[WorkerView, ...]:
        """The run's pods as workers."""
        pods = self.pods_of(run)
        nodes = {name: await self._node(name) for name in {pod.node for pod in pods if not pod.has_ended}}
        return tuple(
            worker_view(pod, node=nodes.get(pod.node, self._known_node(pod.node)), run_uid=run.uid, now=now)
            for pod in pods
        )

    async def confirm(self, namespace: str, owners: dict[str, str]) -> None:
        """Ask the server for owners (pod name by uid) that no watch has shown: it may lag behind the manifests."""
        for uid, name in owners.items():
            if uid in self.pods.entries or uid in self._ended:
                continue
            found = await exists(self._cluster, core_path(namespace, "pods", name))
            if found is not None and found["metadata"]["uid"] == uid:
                self.pods.put(found)

    def put(self, pod: Object) -> None:
        """Take in a pod as a request has returned it."""
        self.pods.put(pod)

    def pod(self, uid: str) -> PodFacts | None:
        """The pod, None when it is forgotten or was never seen."""
        return self.pods.entries.get(uid) or self._ended.get(uid)

    def is_to_be_noted(self, uid: str) -> bool:
        """Whether the pod is known and not forgotten: what was decided of one that is, was decided before."""
        return uid not in self._forgotten and self.pod(uid) is not None

    def forget(self, uid: str) -> None:
        """Its end has been taken note of: nothing more is to be kept of it, now or once it is deleted."""
        _remember(self._forgotten, uid)
        pod = self._ended.pop(uid, None)
        if pod is not None and uid not in self.pods.entries:
            self._unindex(pod)

    def forget_run(self, run: RunKey) -> None:
        """The run is gone: so is what was kept of its deleted pods. Nobody will take note of those that still drain."""
        _remember(self._gone_runs, run.uid)
        for pod in self.pods_of(run):
            if pod.is_deleted:
                self.forget(pod.uid)

    def forget_runs_but(self, known: Collection[str]) -> None:
        """Let go of deleted pods of runs that are not `known` (uids): such a run was deleted while no controller saw it."""
        for pod in list(self._ended.values()):
            if pod.run_uid not in known:
                self.forget(pod.uid)

    def _pod_changed(self, before: PodFacts | None, after: PodFacts) -> None:
        for key in (after.run_uid, (after.namespace, after.run)):
            self._index.setdefault(key, set()).add(after.uid)
        if before is None or _matters(before) != _matters(after):
            self._wake(after)

    def _pod_gone(self, last: PodFacts) -> None:
        if last.uid in self._forgotten:
            del self._forgotten[last.uid]
            self._unindex(last)
        elif last.run_uid in self._gone_runs:
            self._unindex(last)
        else:
            self._ended[last.uid] = gone(last)
        self._wake(gone(last))

    def _unindex(self, pod: PodFacts) -> None:
        for key in (pod.run_uid, (pod.namespace, pod.run)):
            uids = self._index.get(key, set())
            uids.discard(pod.uid)
            if not uids:
                self._index.pop(key, None)

    def _node_changed(self, before: NodeFacts | None, after: NodeFacts) -> None:
        self._node_uids[after.name] = after.uid
        if before is not None and before.state is not after.state:
            self._wake_pods_on(after.name)

    def _node_gone(self, last: NodeFacts) -> None:
        if self._node_uids.get(last.name) == last.uid:
            del self._node_uids[last.name]
            self._gone_nodes[last.name] = gone_node(last)
            while len(self._gone_nodes) > GONE_NODES_KEPT:
                del self._gone_nodes[next(iter(self._gone_nodes))]
        self._wake_pods_on(last.name)

    def _wake_pods_on(self, node: str) -> None:
        for pod in list(self.pods.entries.values()):
            if pod.node == node:
                self._wake(pod)

    def _known_node(self, name: str) -> NodeFacts | None:
        if not name or not self.nodes.synced.is_set():
            return None  # not placed; or we may not read nodes
        return self.nodes.entries.get(self._node_uids.get(name, "")) or self._gone_nodes.get(name, GONE)

    async def _node(self, name: str) -> NodeFacts | None:
        """The node of a living pod; one that the watch does not show may be too new for it, and is asked for."""
        known = self._known_node(name)
        if known is None or known.state is not NodeState.GONE:
            return known
        found = await exists(self._cluster, core_path("", "nodes", name))
        if found is None:
            return known
        self.nodes.put(found)
        return read_node(found)


def _remember(uids: dict[str, None], uid: str) -> None:
    uids[uid] = None
    while len(uids) > FORGOTTEN_KEPT:
        del uids[next(iter(uids))]


def _matters(pod: PodFacts) -> tuple[object, ...]:
    """What a reconcile would decide upon; the rest of a pod's many changes need not wake anybody."""
    return (pod.phase, pod.node, pod.is_running, pod.deletion_at is None, pod.has_ended, pod.waiting_reason)
