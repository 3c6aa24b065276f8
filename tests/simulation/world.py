"""A cluster in miniature: workers that claim, compute, commit and die, and a controller that crashes and sees late.

Time advances in ticks. Workers change manifests by compare-and-swap on the version they last saw, through
`contract.transitions`, as real ones do; a partitioned worker goes on doing so after the controller has given it up.
Every change is checked on the spot against what the world knows and the controller does not: why a worker really died,
and which records are really bad.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from datetime import datetime

from contract.flight import Flight
from contract.layout import build_data_key
from contract.manifest import Attempt, Checkpoint, Owner, ShardManifest, ShardStatus, invariants, is_claimable
from contract.names import FailureClass, Phase
from contract.ranges import Ranges, contains, count, difference
from contract.transitions import claimed, committed, first_claim, is_released, released
from controller import memory as controller_memory
from controller.actions import Action, Decision, Finalize, ForgetWorker, ReleaseShard, StartWorker, StopWorker
from controller.memory import RunMemory
from controller.observed import Evidence, Intent, NodeState, Observed, WorkerState, WorkerView
from controller.planner import plan
from controller.status import RunStatus
from tests import make

TICK_S = 2.0
RECORDS = 40
"""Records of each shard."""
TOKENS_PER_RECORD = 10
TROUBLE_TICKS = 150
"""Nothing dies by chance afterwards, so that every run can end."""
MAX_TICKS = 1000
NODES = ("node-a", "node-b", "node-c")

COUNTED_CAUSES = frozenset({"exit0", "exit1", "exit75", "exit76", "gpu", "oom", "disk", "refused", "poison"})
"""Deaths over a shard that must count, unless it was us who stopped the worker."""
BLAMED_CAUSES = frozenset({"exit0", "exit1", "exit76", "oom"})
"""Random deaths that may be put down to the records in flight."""
FREE_CAUSES = frozenset(
    {"drained", "evicted", "nodeGone", "partitioned", "deleted", "killed", "rejected", "stopped", "done"}
)
"""Deaths that must never count."""
CHANCES = {
    "drained": 0.025,
    "evicted": 0.025,
    "nodeGone": 0.01,
    "partitioned": 0.015,
    "deleted": 0.008,
    "killed": 0.012,
    "exit1": 0.006,
    "exit75": 0.006,
    "exit76": 0.004,
    "gpu": 0.004,
    "oom": 0.004,
    "disk": 0.003,
    "exit0": 0.004,
    "refused": 0.002,
}
"""Chance of each kind of death, per worker and tick."""
EVIDENCE = {
    "evicted": Evidence(exit_code=137, disruption_reason="EvictionByEvictionAPI", has_deletion_timestamp=True),
    "nodeGone": Evidence(node_state=NodeState.GONE),
    "killed": Evidence(signal=9),
    "exit1": Evidence(exit_code=1),
    "exit75": Evidence(exit_code=75),
    "exit76": Evidence(exit_code=76),
    "gpu": Evidence(exit_code=77),
    "oom": Evidence(exit_code=137, container_reason="OOMKilled"),
    "disk": Evidence(pod_reason="Evicted", messages=("Pod ephemeral local storage usage exceeds the total limit",)),
    "exit0": Evidence(exit_code=0),
    "refused": Evidence(exit_code=69),
    "pull": Evidence(waiting_reason="ImagePullBackOff", messages=("i/o timeout",), has_started=False),
    "poison": Evidence(signal=11),
    "rejected": Evidence(pod_reason="UnexpectedAdmissionError", has_started=False),
    "drained": Evidence(exit_code=143),
    "done": Evidence(exit_code=0),
    "fenced": Evidence(exit_code=79),
}


@dataclass(slots=True, kw_only=True)
class Worker:
    """A worker as it really is."""

    name: str
    uid: str
    slot: int
    attempt: int
    node: str
    started_at: datetime
    state: WorkerState = WorkerState.STARTING
    intent: Intent | None = None
    cause: str | None = None
    """Why it ended, for the world's own books."""
    seen: ShardManifest | None = None
    """The version it holds: its ETag, so to say."""
    finished: list[int] = field(default_factory=list)
    """Ordinals done but not committed."""
    in_flight: tuple[int, int] | None = None
    has_committed: bool = False
    is_visible: bool = True
    """False: the controller's listing lacks it, though it lives (partitioned)."""
    ended_at: datetime | None = None
    is_forgotten: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether it may still write."""
        return self.state is not WorkerState.ENDED


@dataclass
class World:
    """The whole simulation of one run; `step` until `is_over`."""

    seed: int
    num_shards: int = 5
    num_workers: int = 3
    memory: RunMemory = field(default_factory=RunMemory)
    manifests: dict[int, ShardManifest] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    is_finalized: bool = False
    status: RunStatus = field(default_factory=RunStatus)
    ticks: int = 0
    num_crashes: int = 0
    num_replays: int = 0
    is_hopeless: bool = False
    """Every worker is refused by the store before it claims anything."""
    is_memory_whole: bool = True
    """Whether the controller has never lost its memory."""
    committers: dict[tuple[int, int], str] = field(default_factory=dict)
    """Who committed in (shard, epoch)."""
    causes: dict[str, str] = field(default_factory=dict)
    """Why each worker really ended, by uid."""
    history: list[Observed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.plan = make.plan(self.num_shards)
        self.run = make.run(
            {
                "workers": {"count": self.num_workers},
                "model": {"maxTokensPerBatch": 16 * TOKENS_PER_RECORD},
                "failurePolicy": {
                    "maxShardRetries": 12,
                    "minTokensPerBatch": TOKENS_PER_RECORD,
                    "runBreaker": {"maxOpenings": 3 if self.is_hopeless else 40, "probeSeconds": 10},
                },
            }
        )
        self.poison = {
            (self.chance.randrange(self.num_shards), self.chance.randrange(RECORDS))
            for _ in range(self.chance.choice((0, 0, 1, 2)))
        }
        self.fitting_tokens = self.chance.choice((10_000, 10_000, 60, 30))
        self.bad_node = self.chance.choice((None, None, "node-a"))

    @property
    def now(self) -> datetime:
        """The instant of this tick."""
        return make.later(self.ticks * TICK_S)

    @property
    def is_over(self) -> bool:
        """Ended, and everybody gone that can be seen."""
        is_ended = self.status.phase in {Phase.SUCCEEDED, Phase.FAILED}
        return is_ended and all(item.is_forgotten or not item.is_visible for item in self.workers)

    # Workers

    def step(self) -> None:
        """One tick: each worker does something, then perhaps the controller looks."""
        self.ticks += 1
        for worker in self.workers:
            if worker.is_alive:
                self._live(worker)
        if self.chance.random() < 0.7:
            self._reconcile()

    def _live(self, worker: Worker) -> None:
        if worker.state is WorkerState.STARTING:
            if worker.node == self.bad_node and self.chance.random() < 0.5:
                self._end(worker, "rejected")
            elif self.ticks <= TROUBLE_TICKS and self.chance.random() < 0.01:
                self._end(worker, "pull")
            elif self.chance.random() < 0.5:
                worker.state = WorkerState.RUNNING
            return
        cause = self._fate() if worker.is_visible else None
        if cause in BLAMED_CAUSES and worker.in_flight is not None and worker.in_flight[1] - worker.in_flight[0] == 1:
            cause = "killed"  # twice by chance over the same record alone: no policy could tell that from a bad one
        if worker.state is WorkerState.DRAINING:
            if cause is None:
                self._drain(worker)
            elif self.chance.random() < 0.5:
                self._end(worker, "evicted")
            return
        if cause == "partitioned":
            worker.is_visible = False
        elif cause == "drained":
            self._drain(worker)
            return
        elif cause == "deleted":
            worker.is_visible = False
            self._end(worker, "deleted")
            return
        elif cause is not None:
            self._end(worker, cause)
            return
        self._work(worker)

    def _fate(self) -> str | None:
        if self.ticks > TROUBLE_TICKS:
            return None
        roll = self.chance.random()
        for cause, chance in CHANCES.items():
            roll -= chance
            if roll < 0:
                return cause
        return None

    def _work(self, worker: Worker) -> None:
        held = worker.seen
        if self.is_hopeless:
            self._end(worker, "refused")
            return
        if held is None:
            if not self._claim(worker):
                self._end(worker, "done")
            return
        todo = self._next_batch(worker, held)
        if not todo:
            self._commit(worker, records=RECORDS)
            return
        worker.in_flight = (todo[0], todo[-1] + 1)
        if any((held.shard, ordinal) in self.poison for ordinal in todo):
            self._end(worker, "poison")
        elif len(todo) * TOKENS_PER_RECORD > self.fitting_tokens:
            self._end(worker, "oom")
        elif self.chance.random() < 0.8:  # else the batch is still running when the next tick comes
            worker.finished.extend(todo)
            worker.in_flight = None
            if self.chance.random() < 0.4:
                self._commit(worker)

    def _claim(self, worker: Worker) -> bool:
        owner = Owner(pod=worker.name, uid=worker.uid, node=worker.node)
        order = [(worker.slot + number) % self.num_shards for number in range(self.num_shards)]
        for shard in order:
            current = self.manifests.get(shard)
            commit_id = f"claim-{worker.uid}-{self.ticks}"
            if current is None:
                new = first_claim(self.plan.shards[shard], generation=1, owner=owner, commit_id=commit_id, now=self.now)
            elif is_claimable(current, self.now):
                new = claimed(current, owner=owner, commit_id=commit_id, now=self.now)
            else:
                continue
            self._put(new, current)
            worker.seen = new
            return True
        return False

    def _next_batch(self, worker: Worker, held: ShardManifest) -> list[int]:
        settled: Ranges = tuple((item, item + 1) for item in worker.finished)
        free = difference(difference(((0, RECORDS),), held.settled), settled)
        if not free:
            return []
        first, following = free[0]
        budget = held.hints.token_budget or self.run.spec.model.max_tokens_per_batch
        size = max(1, budget // TOKENS_PER_RECORD)
        strikes = [_strikes(held, ordinal) for ordinal in range(first, following)]
        if strikes[0] > 1:
            return [first]
        alike = next((number for number, found in enumerate(strikes) if found != strikes[0]), len(strikes))
        return list(range(first, min(following, first + min(size, alike))))

    def _commit(self, worker: Worker, *, records: int | None = None) -> None:
        """Commit what is finished, one contiguous run of records after the other."""
        while worker.finished or records is not None:
            held = worker.seen
            assert held is not None
            checkpoint = self._checkpoint(worker, held)
            new = committed(
                held,
                commit_id=f"commit-{worker.uid}-{self.ticks}-{held.version}",
                checkpoint=checkpoint,
                records=records if checkpoint is None else None,
                bytes_done=max(worker.finished, default=0),
            )
            if not self._swap(worker, held, new):
                return
            previous = self.committers.setdefault((held.shard, held.epoch), worker.uid)
            assert previous == worker.uid, f"{previous} and {worker.uid} both committed in epoch {held.epoch}"
            worker.has_committed = True
            if checkpoint is not None:
                worker.finished = [item for item in worker.finished if item >= checkpoint.next]
            else:
                records = None
            if new.is_final:
                worker.seen, worker.in_flight = None, None
                return

    def _checkpoint(self, worker: Worker, held: ShardManifest) -> Checkpoint | None:
        if not worker.finished:
            return None
        first = worker.finished[0]
        following = next(
            (item + 1 for item, after in zip(worker.finished, worker.finished[1:], strict=False) if after != item + 1),
            worker.finished[-1] + 1,
        )
        number = len(held.checkpoints)
        return Checkpoint(
            key=build_data_key(1, held.shard, held.epoch, number),
            number=number,
            epoch=held.epoch,
            first=first,
            next=following,
            records=following - first,
            bytes=1,
            sha256="",
            created_at=self.now,
            seconds=TICK_S,
        )

    def _drain(self, worker: Worker) -> None:
        self._commit(worker)
        if not worker.is_alive:
            return
        held = worker.seen
        if held is not None:
            attempt = Attempt(
                pod=worker.name,
                uid=worker.uid,
                node=worker.node,
                epoch=held.epoch,
                failure_class=FailureClass.INTENDED if worker.intent else FailureClass.SPOT_EVICTION,
                evidence="drained",
                counted=False,
                ended_at=self.now,
            )
            new = released(held, attempt=attempt, commit_id=f"drain-{worker.uid}")
            if not self._swap(worker, held, new):
                return
            worker.seen = None
        self._end(worker, "drained")

    def _swap(self, worker: Worker, held: ShardManifest, new: ShardManifest) -> bool:
        """Compare and swap; a worker whose version is not the current one is fenced and ends."""
        current = self.manifests[held.shard]
        if current.version != held.version:
            assert current.owner is None or current.owner.uid != worker.uid, "fenced, though it is the owner"
            self._end(worker, "fenced")
            return False
        self._put(new, current)
        worker.seen = new
        return True

    def _put(self, new: ShardManifest, current: ShardManifest | None) -> None:
        problem = invariants(new, current)
        assert problem is None, problem
        for attempt in new.attempts[-1:]:
            cause = self.causes.get(attempt.uid)
            assert not (attempt.counted and cause in FREE_CAUSES), f"{cause} was charged as {attempt.failure_class}"
            # Who was stopped by us, or was cut off before, ends with nobody knowing how.
            is_excused = any(item.uid == attempt.uid and (item.intent or not item.is_visible) for item in self.workers)
            assert attempt.counted or is_excused or cause not in COUNTED_CAUSES, f"{cause} went free"
        if current is not None:  # P2: what is committed stays, at every change
            assert not difference(current.settled, new.settled), f"shard {new.shard} has lost records"
            assert {item.key for item in current.checkpoints} <= {item.key for item in new.checkpoints}
            assert new.restarts.total >= current.restarts.total
            assert new.restarts.streak <= self.run.spec.failure_policy.max_shard_retries + 1, "retries without bound"
        for item in new.quarantined:
            is_bad = (new.shard, item.ordinal) in self.poison
            assert is_bad or self.fitting_tokens < TOKENS_PER_RECORD, f"good record {item.ordinal} in quarantine"
        self.manifests[new.shard] = new

    def _end(self, worker: Worker, cause: str) -> None:
        worker.state = WorkerState.ENDED
        worker.cause = cause
        worker.ended_at = self.now
        self.causes[worker.uid] = "stopped" if worker.intent and cause == "drained" else cause

    # Controller

    def _reconcile(self) -> None:
        observed = self._observe()
        decision = plan(run=self.run, plan=self.plan, observed=observed, memory=self.memory, now=self.now)
        self._check(decision, observed)
        actions = decision.actions
        crash_after = self.chance.randrange(len(actions) + 1) if self.chance.random() < 0.1 else None
        if crash_after is None or self.chance.random() < 0.5:
            self.memory, self.status = decision.memory, decision.status  # one write
        else:
            crash_after = 0
        if crash_after is not None:
            self.num_crashes += 1
            fields = json.loads(json.dumps(controller_memory.to_fields(self.memory)))
            is_kept = self.is_hopeless or self.chance.random() < 0.8
            self.memory = controller_memory.from_fields(fields) if is_kept else RunMemory()
            self.is_memory_whole &= is_kept
        if self.chance.random() < 0.05:  # a second controller that has decided the same
            self.num_replays += 1
            actions = (*actions, *actions)
        for action in actions[:crash_after]:
            if not self._apply(action, observed):
                break

    def _observe(self) -> Observed:
        """Manifests, then workers; now and then something happens between the two, or the listing is an old one."""
        manifests = dict(self.manifests)
        if self.chance.random() < 0.3:
            for worker in self.workers * 3:
                if worker.is_alive and self.chance.random() < 0.6:
                    self._live(worker)
        observed = Observed(
            manifests=manifests,
            workers=tuple(self._view(item) for item in self.workers if item.is_visible and not item.is_forgotten),
            is_complete=True,
            is_finalized=self.is_finalized,
        )
        self.history = [*self.history[-4:], observed]
        if self.chance.random() < 0.15:
            # Manifests of now beside a listing of earlier: what a cache of pods may show.
            workers = self.chance.choice(self.history).workers
            # Events that were lost: somebody is not in the cache at all.
            seen = tuple(item for item in workers if self.chance.random() < 0.9)
            return replace(observed, workers=seen, is_complete=False)
        return observed

    def _view(self, worker: Worker) -> WorkerView:
        return WorkerView(
            name=worker.name,
            uid=worker.uid,
            slot=worker.slot,
            attempt=worker.attempt,
            node=worker.node,
            state=worker.state,
            started_at=worker.started_at,
            evidence=self._evidence(worker) if worker.cause is not None else None,
        )

    def _evidence(self, worker: Worker) -> Evidence:
        assert worker.cause is not None
        assert worker.ended_at is not None
        held, (first, following) = worker.seen, worker.in_flight or (None, None)
        flight = Flight(
            shard=held.shard if held else None,
            epoch=held.epoch if held else None,
            first=first,
            next=following,
            first_offset=first,
            first_id=str(first),
            has_claimed=held is not None or worker.has_committed,
            has_committed=worker.has_committed,
            exit_code={
                "done": 0,
                "refused": 69,
                "exit75": 75,
                "exit76": 76,
                "gpu": 77,
                "fenced": 79,
                "drained": 143,
            }.get(worker.cause),
        )
        return replace(
            EVIDENCE[worker.cause],
            intent=worker.intent,
            flight=flight,
            ran_s=(worker.ended_at - worker.started_at).total_seconds(),
        )

    def _apply(self, action: Action, observed: Observed) -> bool:
        match action:
            case StartWorker():
                self._start(action)
            case StopWorker():
                for worker in self.workers:
                    if worker.uid == action.uid and worker.state in {WorkerState.STARTING, WorkerState.RUNNING}:
                        worker.intent, worker.state = action.intent, WorkerState.DRAINING
            case ReleaseShard():
                return self._release(action, observed)
            case ForgetWorker():
                for worker in self.workers:
                    if worker.uid == action.uid:
                        assert not worker.is_alive, f"{worker.name} was forgotten alive"
                        held = [m for m in self.manifests.values() if m.owner and m.owner.uid == worker.uid]
                        assert not held, f"{worker.name} was forgotten while it held shard {held[0].shard}"
                        worker.is_forgotten = True
            case Finalize():
                assert all(item.is_final for item in self.manifests.values()), "finalised before its time"
                self.is_finalized = True
        return True

    def _start(self, action: StartWorker) -> None:
        if any(item.name == action.name and item.is_visible and not item.is_forgotten for item in self.workers):
            return
        nodes = [node for node in NODES if node not in action.avoid_nodes] or NODES
        self.workers.append(
            Worker(
                name=action.name,
                uid=f"uid-{len(self.workers)}",
                slot=action.slot,
                attempt=action.attempt,
                node=self.chance.choice(nodes),
                started_at=self.now,
            )
        )

    def _release(self, action: ReleaseShard, observed: Observed) -> bool:
        seen, current = observed.manifests[action.shard], self.manifests[action.shard]
        for worker in self.workers:
            if worker.uid == action.uid and worker.is_visible:
                assert not worker.is_alive, f"the shard of {worker.name} was released alive"
        new = action.applied(seen, commit_id=f"release-{self.ticks}-{action.shard}")
        if new is None or current.version != seen.version:
            return False
        assert not is_released(current, uid=action.uid, epoch=action.epoch)
        self._put(new, current)
        for worker in self.workers:
            if worker.uid == action.uid and not worker.is_visible:
                worker.is_forgotten = worker.is_forgotten or not worker.is_alive
        return True

    def _check(self, decision: Decision, observed: Observed) -> None:
        """What must hold after every look."""
        status, before = decision.status, self.status
        num_counted_deaths = sum(cause not in FREE_CAUSES for cause in self.causes.values())
        assert status.restarts.counted <= num_counted_deaths, "more failures counted than there were"
        live = [item for item in observed.workers if item.is_live]
        assert len({item.uid for item in live}) == len(live)
        assert status.workers.desired <= self.num_workers
        # P4: no more workers than places, none beside the probe while the breaker is open.
        starts = [item for item in decision.actions if isinstance(item, StartWorker)]
        assert len({item.slot for item in starts}) == len(starts) <= self.num_workers
        assert all(item.slot < self.num_workers for item in starts)
        assert status.phase is not Phase.CIRCUIT_OPEN or len(starts) <= 1, "an open breaker starts workers"
        holders = {found.owner.uid for found in observed.manifests.values() if found.owner is not None}
        stopped = {item.uid for item in decision.actions if isinstance(item, StopWorker)}
        is_open = status.phase is Phase.CIRCUIT_OPEN
        assert not (is_open and stopped & holders), "an open breaker stops workers that may make progress"
        # P5: success is what the manifests say.
        is_complete = len(self.manifests) == self.num_shards and all(
            item.status is ShardStatus.COMPLETE for item in self.manifests.values()
        )
        assert status.phase is not Phase.SUCCEEDED or is_complete, "success without complete shards"
        assert status.progress.records >= before.progress.records or not observed.is_complete, "progress fell"
        # A restart that was counted as nobody's is not, once a shard of that worker comes to light, until it is released.
        alive = {item.uid for item in live}
        num_coming = sum(
            found.owner is not None and found.owner.uid not in alive for found in observed.manifests.values()
        )
        if self.is_memory_whole and observed.is_complete:
            assert status.restarts.total + num_coming >= before.restarts.total, "restarts fell"

    # The end

    def verify(self) -> None:
        """P1 over the whole run: each record in one checkpoint or in quarantine, and only bad ones there."""
        assert self.status.phase is Phase.SUCCEEDED, (self.status.phase, self.status.message)
        for shard in range(self.num_shards):
            found = self.manifests[shard]
            assert found.status is ShardStatus.COMPLETE
            assert count(found.settled) == RECORDS
            refused = {item.ordinal for item in found.quarantined}
            assert refused == {ordinal for place, ordinal in self.poison if place == shard}


def _strikes(manifest: ShardManifest, ordinal: int) -> int:
    return next((item.count for item in manifest.strikes if contains(((item.first, item.next),), ordinal)), 0)
