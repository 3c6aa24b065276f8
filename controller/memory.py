"""What must survive a restart of the controller beyond the manifests: small, bounded, and never needed for truth. Pure.

It is kept in the resource's status, or in coordinator.json. A controller that finds none, or an older one, counts a
few failures too little or too much; nothing is lost or doubled, since that hangs on the manifests alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from contract.names import FailureClass
from controller import codec
from controller.breaker import NodeBreakers, RunBreaker
from controller.conditions import Condition
from controller.eviction_rate import EvictionRate

JUDGED_KEPT = 256
"""Judged workers remembered beyond those still observed: a late listing may show them once more."""
DEATHS_KEPT = 32
SAMPLES_KEPT = 9
SAMPLE_S = 15.0
FAILURES_KEPT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place for one worker."""

    slot: int
    attempt: int = 0
    """Number of the worker to be started next, or running now: it moves on only when that one has been seen to end, so
    a start that is repeated after a crash or a late listing has the same name."""
    not_before: datetime | None = None
    """No start before; None = at once."""
    num_failures: int = 0
    """Counted failures in a row, with no commit by a worker of this slot between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A counted, unexplained death; equal ones in a row make a crash loop."""

    at: datetime
    signature: str
    """How it ended, without what differs from time to time."""
    shard: int | None
    """What it held; None = nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How far the run was at an instant; the rate comes from a few of these."""

    at: datetime
    records: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureNote:
    """One of the last failures, for people."""

    time: datetime
    pod: str
    node: str
    failure_class: FailureClass
    evidence: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shardless:
    """An ended worker that held no shard; should one come to light yet, its manifest counts the restart instead."""

    uid: str
    failure_class: FailureClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An ended worker that is still to be seen, and what its end was judged as."""

    uid: str
    failure_class: FailureClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A running worker that holds no shard."""

    uid: str
    since: datetime
    """When it was first seen so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMemory:
    """The memory of one run. `RunMemory()` is a fresh start."""

    resource_generation: int | None = None
    """Which version of the spec was seen last; None = none yet."""
    started_at: datetime | None = None
    """When it was first planned, or resumed from suspension; activeDeadlineSeconds counts from here."""
    progress_mark: int | None = None
    """Settled records and complete shards when last seen; more is progress. None = never looked."""
    slots: tuple[Slot, ...] = ()
    judged: tuple[str, ...] = ()
    """Uids of ended workers that have been counted, oldest first."""
    deaths: tuple[Death, ...] = ()
    """Since the last progress."""
    num_unexplained_kills: int = 0
    """Workers killed from outside since the last progress."""
    shardless: tuple[Shardless, ...] = ()
    """Ended workers, still to be seen, that held no shard as far as we know."""
    restarts_by_class: tuple[tuple[str, int], ...] = ()
    """Those of them that are gone: no manifest remembers them."""
    ended: tuple[Ended, ...] = ()
    """Those that were not evicted. One that drained has given its shard back as evicted: it could not tell who asked."""
    not_evicted: tuple[tuple[str, int], ...] = ()
    """Of the restarts that manifests count as evictions: what they were judged as, by class."""
    worker_seconds: float = 0.0
    """GPU time of ended workers."""
    breaker: RunBreaker = field(default_factory=RunBreaker)
    nodes: NodeBreakers = ()
    eviction_rate: EvictionRate = field(default_factory=EvictionRate)
    """Of workers that are not on demand."""
    last_failures: tuple[FailureNote, ...] = ()
    samples: tuple[Sample, ...] = ()
    """At most SAMPLES_KEPT, at least SAMPLE_S apart."""
    idle: tuple[Idle, ...] = ()
    conditions: tuple[Condition, ...] = ()


def forgiven(memory: RunMemory) -> RunMemory:
    """The memory once a person has stepped in (changed the spec, or started the run again).

    Breakers close, waits and the deadline begin anew; totals and the last failures stay.
    """
    return replace(
        memory,
        started_at=None,
        slots=tuple(replace(slot, not_before=None, num_failures=0) for slot in memory.slots),
        deaths=(),
        num_unexplained_kills=0,
        breaker=RunBreaker(),
        nodes=(),
        samples=(),
    )


def to_fields(memory: RunMemory) -> dict[str, Any]:
    """JSON-able fields."""
    fields: dict[str, Any] = codec.to_fields(memory)
    return fields


def from_fields(fields: Mapping[str, Any]) -> RunMemory:
    """The memory in `fields`; raises Corrupt, upon which `RunMemory()` is a safe answer."""
    return codec.from_fields(RunMemory, fields, where="memory")
