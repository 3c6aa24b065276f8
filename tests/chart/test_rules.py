"""The CRD's CEL rules, evaluated with a CEL library: what they refuse, and that the controller says the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from contract.errors import SpecError
from controller.api import PROFILES, Profile, parse_run
from tests import make
from tests.chart import rendering
from tests.chart.stored import RULES, broken_rules, problems
from tests.controller.test_api import FULL

SCHEMA = rendering.schema()

ESM2 = {"model": {"name": "esm2", "source": "random:1"}}


def all_rules(schema: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Every rule of the schema."""
    yield from schema.get(RULES, ())
    for found in schema.get("properties", {}).values():
        yield from all_rules(found)


BEGUN = {"phase": "Running", "shards": {"total": 3}}
"""The status of a run that has a plan."""
NOT_BEGUN: tuple[dict[str, Any], ...] = (
    {"phase": "Pending"},
    {"phase": "Pending", "shards": {}},
    {"shards": {"total": 0}},
)
"""The status of runs whose input or output was refused."""
# What changes in a run that has begun, from what, and which message it meets; None = it is taken.
CHANGES: tuple[tuple[dict[str, Any], dict[str, Any], str | None], ...] = (
    ({}, {}, None),
    (FULL, FULL, None),
    ({}, {"workers": {"count": 0}}, None),
    ({}, {"suspend": True}, None),
    ({}, {"model": {"maxTokensPerBatch": 1}}, None),
    ({}, {"model": {"parameters": {"x": 1}}}, None),  # CEL cannot see them; run.json can
    ({}, {"checkpoint": {"profile": "spot"}, "failurePolicy": {"maxFailedShards": 1}}, None),
    ({}, {"input": {"format": "fasta", "valueField": "sequence"}, "model": {"precision": "fp32"}}, None),
    ({}, {"input": {"uris": ["in.fasta", "more.fasta"]}}, "input cannot be changed once"),
    ({}, {"input": {"format": "lines"}}, "input cannot be changed once"),
    ({}, {"input": {"shardBytes": "32Mi"}}, "input cannot be changed once"),
    ({}, {"input": {"valueField": None}}, "input cannot be changed once"),
    ({}, {"output": {"uri": "s3://b/other"}}, "output cannot be changed once"),
    ({}, {"output": {"dtype": "float16"}}, "output cannot be changed once"),
    ({}, {"output": {"kind": "perToken"}}, "output cannot be changed once"),
    ({}, ESM2, "only maxTokensPerBatch can be changed"),
    (ESM2, {}, "only maxTokensPerBatch can be changed"),
    (ESM2, {"model": {**ESM2["model"], "source": "random:2"}}, "only maxTokensPerBatch can be changed"),
    ({}, {"model": {"precision": "bf16"}}, "only maxTokensPerBatch can be changed"),
    ({}, {"model": {"onTooLong": "quarantine"}}, "only maxTokensPerBatch can be changed"),
    ({}, {"model": {"maxLength": 10}}, "only maxTokensPerBatch can be changed"),
    ({"model": {"maxLength": 10}}, {"model": {"maxLength": 11}}, "only maxTokensPerBatch can be changed"),
    ({"model": {"maxLength": 10}}, {"model": {"maxLength": None}}, "only maxTokensPerBatch can be changed"),
    ({"model": {"maxLength": 10}}, {}, "only maxTokensPerBatch can be changed"),
)


@pytest.mark.parametrize(("old", "new", "message"), CHANGES)
def test_identity_cannot_be_changed(old: dict[str, Any], new: dict[str, Any], message: str | None) -> None:
    """What decides the rows of an output stays; everything else may change while a run goes on."""
    broken = broken_rules(make.resource(new), SCHEMA, old={**make.resource(old), "status": BEGUN})

    assert [found for _, found in broken if message is None or message not in found] == []
    assert bool(broken) == (message is not None)


@pytest.mark.parametrize(("old", "new"), [(old, new) for old, new, message in CHANGES if message])
@pytest.mark.parametrize("status", [None, *NOT_BEGUN])
def test_a_mistake_is_corrected_in_place(
    old: dict[str, Any], new: dict[str, Any], status: dict[str, Any] | None
) -> None:
    """What is refused because nothing matches, or for a path, may be corrected: nothing has been made of it yet."""
    before = make.resource(old) | ({} if status is None else {"status": status})

    assert broken_rules(make.resource(new), SCHEMA, old=before) == []


@pytest.mark.parametrize(("old", "new", "message"), [item for item in CHANGES if item[2]])
def test_a_new_generation_may_be_of_another_input_or_model(
    old: dict[str, Any], new: dict[str, Any], message: str
) -> None:
    """`resume: Restart` opens one for what the spec asks for now; where that is written to stays."""
    before = {**make.resource(old), "status": BEGUN}
    broken = broken_rules(make.resource({**new, "resume": "Restart"}), SCHEMA, old=before)

    assert bool(broken) == ("output" in message)


@pytest.mark.parametrize(("changes"), [{}, FULL, ESM2, {"model": {"maxLength": None}}])
def test_a_new_run_meets_no_rule(changes: dict[str, Any]) -> None:
    """Valid resources are created without complaint: rules about changes wait for a change."""
    assert broken_rules(make.resource(changes), SCHEMA) == []


WRONG: tuple[dict[str, Any], ...] = (
    {"model": {"name": "esm2"}},
    {"model": {"name": "torch"}},
    {"model": {"name": "torch", "source": None}},
    {"checkpoint": {"everySeconds": 20, "emergencySeconds": 20}},
    {"checkpoint": {"everySeconds": 20.5, "emergencySeconds": 20}},
    {"checkpoint": {"profile": "spot", "everySeconds": 120}},
    {"checkpoint": {"profile": "default", "everySeconds": 600}},
    {"checkpoint": {"profile": "viral", "everySeconds": 601}},
    {"checkpoint": {"profile": "spot", "emergencySeconds": 30}},
    {"checkpoint": {"profile": "viral", "emergencySeconds": 180}},
    {"checkpoint": {"profile": "default", "emergencySeconds": 300}},
)


@pytest.mark.parametrize("changes", WRONG)
def test_the_controller_says_what_the_rule_says(changes: dict[str, Any]) -> None:
    """What a rule refuses, controller.api refuses with the same words: an old server checks no rules."""
    resource = make.resource(changes)

    ((_, message),) = broken_rules(resource, SCHEMA)

    assert problems(resource, SCHEMA) == []
    with pytest.raises(SpecError) as caught:
        parse_run(resource)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "torch", "source": "m:f"}},
        {"checkpoint": {"everySeconds": 20, "emergencySeconds": 20.5}},
        {"checkpoint": {"everySeconds": 1}},
        {"checkpoint": {"emergencySeconds": 1000}},
        {"checkpoint": {"everyRecords": 5}},
        *({"checkpoint": {"profile": name, "everySeconds": PROFILES[name].emergency_seconds - 1}} for name in Profile),
        *({"checkpoint": {"profile": name, "emergencySeconds": PROFILES[name].every_seconds + 1}} for name in Profile),
    ],
)
def test_rules_refuse_nothing_that_is_valid(changes: dict[str, Any]) -> None:
    """Thresholds are compared with those of the profile, strictly, and a source is not asked of kmer."""
    resource = make.resource(changes)
    parse_run(resource)

    assert broken_rules(resource, SCHEMA) == []


def test_every_rule_is_tested() -> None:
    """Each rule refuses something in the tables above."""
    seen = {rule for changes in WRONG for rule, _ in broken_rules(make.resource(changes), SCHEMA)}
    for old, new, _ in CHANGES:
        before = {**make.resource(old), "status": BEGUN}
        seen |= {rule for rule, _ in broken_rules(make.resource(new), SCHEMA, old=before)}
    rules = list(all_rules(SCHEMA))

    assert len(rules) == len({item["rule"] for item in rules})
    assert seen == {item["rule"] for item in rules}
    assert all(set(item) == {"rule", "message"} for item in rules), "newer servers know more; 1.25 refuses it"
