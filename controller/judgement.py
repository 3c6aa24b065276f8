"""Counting the dead: each ended worker once, into breakers, slots and totals. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from contract.manifest import ShardManifest, ShardStatus
from contract.names import FailureClass
from controller.api import FailurePolicy
from controller.breaker import node_failed, node_progressed, run_failed
from controller.consequences import delay_s
from controller.eviction_rate import with_eviction
from controller.failure_policy import Charge, Verdict, classify, escalated, signature
from controller.memory import DEATHS_KEPT, FAILURES_KEPT, Death, Ended, FailureNote, RunMemory, Shardless, Slot
from controller.observed import Evidence, Observed, WorkerView

_EVICTIONS = frozenset({FailureClass.SPOT_EVICTION, FailureClass.NODE_LOST})
"""What takes workers away without their fault. Where nodes cannot be read, a lost spot node is just lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """A worker that does nothing any more, and what it left behind."""

    uid: str
    name: str
    node: str
    evidence: Evidence
    worker: WorkerView | None
    """None = it vanished: only manifests still name it."""
    held: tuple[ShardManifest, ...]
    """Shards it still holds."""

    @property
    def shard(self) -> int | None:
        """Shard it held."""
        return self.held[0].shard if self.held else None


def the_dead(observed: Observed) -> tuple[Dead, ...]:
    """All ended workers, then all owners that vanished (told only by a complete observation)."""
    held: dict[str, list[ShardManifest]] = {}
    for shard in sorted(observed.manifests):
        found = observed.manifests[shard]
        if found.owner is not None:
            held.setdefault(found.owner.uid, []).append(found)
    ended = [
        Dead(
            uid=worker.uid,
            name=worker.name,
            node=worker.node,
            evidence=worker.evidence or Evidence(is_vanished=True),
            worker=worker,
            held=tuple(held.get(worker.uid, ())),
        )
        for worker in observed.workers
        if not worker.is_live
    ]
    if observed.is_complete:
        present = {worker.uid for worker in observed.workers}
        for uid, manifests in held.items():
            owner = manifests[0].owner
            if uid not in present and owner is not None:
                ended.append(
                    Dead(
                        uid=uid,
                        name=owner.pod,
                        node=owner.node,
                        evidence=Evidence(is_vanished=True),
                        worker=None,
                        held=tuple(manifests),
                    )
                )
    return tuple(ended)


def judged(
    dead: Dead, *, manifests: Mapping[int, ShardManifest], memory: RunMemory, policy: FailurePolicy, now: datetime
) -> tuple[Verdict, RunMemory]:
    """The verdict on a dead worker, and the memory with it counted, once however often it is seen. Pure."""
    verdict = classify(dead.evidence, _its_shard(dead, manifests))
    if dead.uid in memory.judged:
        return verdict, memory
    death = Death(at=now, signature=signature(dead.evidence), shard=dead.shard)
    num_kills = memory.num_unexplained_kills + verdict.is_blind
    verdict = escalated(verdict, death, deaths=memory.deaths, num_kills=num_kills, policy=policy)
    memory = replace(
        memory,
        judged=(*memory.judged, dead.uid),
        num_unexplained_kills=num_kills,
        slots=_slots(dead, verdict, memory, policy=policy, now=now),
        nodes=node_failed(memory.nodes, node=dead.node, score=verdict.node_score, policy=policy.node_breaker, now=now),
        worker_seconds=memory.worker_seconds + (dead.evidence.ran_s or 0.0),
    )
    is_on_demand = dead.worker is not None and dead.worker.is_on_demand
    if verdict.failure_class in _EVICTIONS and not is_on_demand:
        memory = replace(memory, eviction_rate=with_eviction(memory.eviction_rate))
    flight, ran_s = dead.evidence.flight, dead.evidence.ran_s
    if flight is not None and flight.has_committed and ran_s is not None and not verdict.node_score:
        started_at = now - timedelta(seconds=ran_s)
        memory = replace(memory, nodes=node_progressed(memory.nodes, node=dead.node, claimed_at=started_at))
    if verdict.failure_class not in {FailureClass.DONE, FailureClass.SPOT_EVICTION} and not _may_be_eviction(
        verdict, dead.evidence
    ):
        memory = replace(memory, ended=(*memory.ended, Ended(uid=dead.uid, failure_class=verdict.failure_class)))
    if verdict.failure_class in {FailureClass.DONE, FailureClass.INTENDED}:
        return verdict, memory
    if not dead.held:
        entry = Shardless(uid=dead.uid, failure_class=verdict.failure_class)
        memory = replace(memory, shardless=(*memory.shardless, entry))
    note = FailureNote(
        time=now,
        pod=dead.name,
        node=dead.node,
        failure_class=verdict.failure_class,
        evidence=verdict.evidence,
        advice=verdict.advice,
    )
    memory = replace(memory, last_failures=(*memory.last_failures, note)[-FAILURES_KEPT:])
    if verdict.is_counted:
        memory = replace(
            memory,
            deaths=(*memory.deaths, death)[-DEATHS_KEPT:],
            breaker=run_failed(
                memory.breaker,
                is_decisive=verdict.is_permanent and verdict.charged_to is Charge.RUN,
                reason=f"{verdict.evidence}; {verdict.advice}" if verdict.advice else verdict.evidence,
                policy=policy.run_breaker,
                now=now,
            ),
        )
    return verdict, memory


def _may_be_eviction(verdict: Verdict, seen: Evidence) -> bool:
    """Whether all that is known is that somebody deleted it; then the worker's own word that it drained stands.

    Before 1.26 an eviction looks like that, should the pod go before its exit code is shown.
    """
    is_explained = seen.intent is not None or seen.has_termination_target or seen.exit_code is not None
    return verdict.failure_class is FailureClass.INTENDED and not is_explained


def with_restarts_counted(memory: RunMemory, observed: Observed) -> RunMemory:
    """Memory in which each restart is counted in one place: in a manifest, if one names the worker, else here."""
    memory = _with_drains_counted(memory, observed)
    named = {item.uid for found in observed.manifests.values() for item in found.attempts}
    named |= {found.owner.uid for found in observed.manifests.values() if found.owner is not None}
    open_entries = [item for item in memory.shardless if item.uid not in named]
    if not observed.is_complete:
        return replace(memory, shardless=tuple(open_entries))
    present = {worker.uid for worker in observed.workers}
    by_class = dict(memory.restarts_by_class)
    for item in open_entries:
        if item.uid not in present:
            by_class[item.failure_class.value] = by_class.get(item.failure_class.value, 0) + 1
    return replace(
        memory,
        shardless=tuple(item for item in open_entries if item.uid in present),
        restarts_by_class=tuple(sorted(by_class.items())),
    )


def _with_drains_counted(memory: RunMemory, observed: Observed) -> RunMemory:
    """Memory in which each restart that a manifest counts as an eviction, and that was none, is told by its class."""
    present = {worker.uid for worker in observed.workers}
    drained = {
        item.uid
        for found in observed.manifests.values()
        for item in found.attempts
        if item.failure_class is FailureClass.SPOT_EVICTION
    }
    not_evicted = Counter(dict(memory.not_evicted))
    not_evicted.update(item.failure_class.value for item in memory.ended if item.uid in drained)
    return replace(
        memory,
        ended=tuple(item for item in memory.ended if item.uid in present and item.uid not in drained),
        not_evicted=tuple(sorted(not_evicted.items())),
    )


def spread(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` alone: jitter that a replay does not change. Pure."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _its_shard(dead: Dead, manifests: Mapping[int, ShardManifest]) -> ShardManifest | None:
    """The shard it held and worked on; holding none, the one it completed, if that was its last."""
    flight = dead.evidence.flight
    for found in dead.held:
        if flight is None or flight.shard == found.shard:
            return found
    if dead.held:
        return dead.held[0]
    last = manifests.get(flight.shard) if flight is not None and flight.shard is not None else None
    if last is not None and flight is not None and last.status is ShardStatus.COMPLETE and last.epoch == flight.epoch:
        return last
    return None


def _slots(
    dead: Dead, verdict: Verdict, memory: RunMemory, *, policy: FailurePolicy, now: datetime
) -> tuple[Slot, ...]:
    """Slots with that of the dead moved on to its next attempt, and made to wait."""
    worker, flight = dead.worker, dead.evidence.flight
    if worker is None or worker.slot < 0:
        return memory.slots
    slot = next((item for item in memory.slots if item.slot == worker.slot), Slot(slot=worker.slot))
    before = 0 if flight is not None and flight.has_committed else slot.num_failures
    num_failures = before + verdict.is_counted
    wait_s = delay_s(
        verdict.failure_class,
        num_failures=max(1, num_failures),
        backoff=policy.backoff,
        jitter=spread(dead.uid, "slot"),
    )
    moved = replace(
        slot,
        attempt=max(slot.attempt, worker.attempt + 1),
        not_before=now + timedelta(seconds=wait_s) if wait_s else None,
        num_failures=num_failures,
    )
    return (*(item for item in memory.slots if item.slot != worker.slot), moved)
