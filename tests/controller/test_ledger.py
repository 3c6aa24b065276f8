"""controller.ledger: what is kept in `status.memory`, and how large it may become."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from contract.names import ConditionType
from controller import codec
from controller.conditions import Condition
from controller.ledger import MAX_BYTES, Ledger, from_status, retried, to_text
from controller.memory import RunMemory, Slot
from tests.make import NOW, later

CONDITION = Condition(type=ConditionType.ACCEPTED, status="True", reason="Valid", last_transition_time=NOW)


def ledger(*, num_slots: int = 1, num_judged: int = 1) -> Ledger:
    """A ledger of a run with so many places, and so many ended workers."""
    slots = tuple(
        Slot(slot=slot, attempt=slot * 7919 % 1000, not_before=later(slot * 13 % 997)) for slot in range(num_slots)
    )
    memory = RunMemory(slots=slots, judged=tuple(f"{uid:032x}" for uid in range(num_judged)), conditions=(CONDITION,))
    return Ledger(memory=memory, output_uri="s3://b/r", store_generation=2, restarted_for=3)


def status(text: str) -> dict[str, Any]:
    """The status that holds it."""
    return {"memory": text, "conditions": [codec.to_fields(CONDITION)]}


@pytest.mark.parametrize("num_slots", [1, 5000])
def test_a_ledger_survives_a_restart(num_slots: int) -> None:
    """Short ones are plain, long ones compressed; conditions come from the status beside it."""
    kept = ledger(num_slots=num_slots)

    assert from_status(status(to_text(kept))) == kept


def test_five_thousand_workers_fit() -> None:
    """Within what the CRD allows, with room for the rest of the status in etcd."""
    assert len(to_text(ledger(num_slots=5000, num_judged=256))) < 100_000


def test_what_does_not_fit_is_cut_to_what_matters() -> None:
    """Where the run has got to stays; counts are given up, which costs no truth."""
    text = to_text(ledger(num_slots=10, num_judged=100_000))
    found = from_status({"memory": text})

    assert len(text) <= MAX_BYTES
    assert (found.output_uri, found.store_generation, found.restarted_for) == ("s3://b/r", 2, 3)
    assert len(found.memory.slots) == 10


@pytest.mark.parametrize("text", ["", "{", "zlib:", "zlib:AAAA", "[]", '{"memory": 3}', '{"memory": {"slots": [{}]}}'])
def test_a_text_that_cannot_be_read_is_an_empty_ledger(text: str) -> None:
    """Somebody's hand, or another version: counts begin anew."""
    assert from_status({"memory": text}) == Ledger()


def test_another_stamp_forgives_once() -> None:
    """A retry closes breakers; the same stamp, seen again, forgives nothing."""
    spent = replace(ledger(), memory=RunMemory(num_unexplained_kills=7))
    forgiven = retried(spent, "today")
    spent_again = replace(forgiven, memory=RunMemory(num_unexplained_kills=7))

    assert (forgiven.memory.num_unexplained_kills, forgiven.retried_for) == (0, "today")
    assert retried(spent_again, "today") == spent_again
