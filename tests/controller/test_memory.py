"""controller.memory and controller.codec: what survives a restart of the controller."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contract.errors import Corrupt
from contract.names import ConditionType, FailureClass
from controller.breaker import NodeBreaker, RunBreaker
from controller.conditions import Condition
from controller.eviction_rate import EvictionRate
from controller.memory import (
    Death,
    Ended,
    FailureNote,
    Idle,
    RunMemory,
    Sample,
    Shardless,
    Slot,
    forgiven,
    from_fields,
    to_fields,
)
from tests.make import NOW, later

FULL = RunMemory(
    resource_generation=3,
    started_at=NOW,
    progress_mark=7,
    slots=(Slot(slot=1, attempt=2, not_before=later(3), num_failures=4),),
    judged=("a", "b"),
    deaths=(Death(at=NOW, signature="1", shard=None), Death(at=NOW, signature="1", shard=5)),
    num_unexplained_kills=2,
    shardless=(Shardless(uid="u", failure_class=FailureClass.NODE_LOST),),
    restarts_by_class=(("NodeLost", 2), ("Transient", 1)),
    ended=(Ended(uid="e", failure_class=FailureClass.INTENDED),),
    not_evicted=(("Intended", 3),),
    worker_seconds=12.5,
    breaker=RunBreaker(num_openings=1, retry_at=later(60), failures=(NOW,), reason="exit 64"),
    eviction_rate=EvictionRate(as_of=NOW, evictions=2.5, worker_hours=0.5),
    nodes=(NodeBreaker(node="n", scores=((NOW, 3),), avoided_until=later(3600)),),
    last_failures=(
        FailureNote(
            time=NOW, pod="p", node="n", failure_class=FailureClass.TRANSIENT, evidence="exit 1", advice="read the log"
        ),
    ),
    samples=(Sample(at=NOW, records=1, bytes=2),),
    idle=(Idle(uid="u", since=NOW),),
    conditions=(Condition(type=ConditionType.FAILED, status="False", reason="Running", last_transition_time=NOW),),
)


def _written(memory: RunMemory) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(json.dumps(to_fields(memory)))
    return fields


@pytest.mark.parametrize("memory", [RunMemory(), FULL], ids=["fresh", "full"])
def test_memory_survives_json(memory: RunMemory) -> None:
    """What is written is read back equal."""
    assert from_fields(_written(memory)) == memory


def test_every_field_of_the_example_differs_from_its_default() -> None:
    """The round trip above leaves no field out."""
    fresh = _written(RunMemory())

    assert all(value != fresh[name] for name, value in _written(FULL).items())


def test_another_versions_memory_can_be_read() -> None:
    """Names that are not known are ignored, absent ones take their default."""
    fields = _written(FULL)
    del fields["samples"]

    found = from_fields({**fields, "invented": 1})

    assert found.samples == ()
    assert found.breaker == FULL.breaker


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("slots", 3, "memory.slots"),
        ("slots", [{}], "memory.slots[0]"),
        ("slots", [3], "memory.slots[0]"),
        ("slots", [{"slot": "1"}], "memory.slots[0].slot"),
        ("startedAt", "noon", "memory.startedAt"),
        ("startedAt", 3, "memory.startedAt"),
        ("workerSeconds", "3", "memory.workerSeconds"),
        ("numUnexplainedKills", True, "memory.numUnexplainedKills"),
        ("restartsByClass", [["Transient"]], "memory.restartsByClass[0]"),
        ("breaker", None, "memory.breaker"),
        ("conditions", [{"type": "Fine", "status": "True", "reason": "x"}], "memory.conditions[0].type"),
    ],
)
def test_a_memory_that_is_none_is_named(name: str, value: object, where: str) -> None:
    """A value of the wrong kind is an error that says where, so that the caller can start afresh knowingly."""
    with pytest.raises(Corrupt) as caught:
        from_fields({**_written(FULL), name: value})

    assert str(caught.value).startswith(where)


def test_a_whole_number_is_a_fine_float() -> None:
    """JSON writers drop the `.0`."""
    assert from_fields({"workerSeconds": 3}).worker_seconds == 3.0


def test_forgiven_keeps_totals_and_drops_grudges() -> None:
    """After a person stepped in nothing waits or is avoided, but restarts and failures are still told."""
    found = forgiven(FULL)

    assert (found.breaker, found.nodes, found.deaths, found.num_unexplained_kills) == (RunBreaker(), (), (), 0)
    assert found.slots == (Slot(slot=1, attempt=2),)
    assert found.started_at is None
    assert (found.restarts_by_class, found.last_failures) == (FULL.restarts_by_class, FULL.last_failures)
    assert (found.judged, found.worker_seconds) == (FULL.judged, FULL.worker_seconds)
