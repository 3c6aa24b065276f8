"""The shard manifest: what is stored comes back, and what breaks a promise is named before it is put."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from contract import documents, manifest
from contract.errors import Corrupt, NewerFormat
from contract.manifest import Owner, ShardManifest, ShardStatus, invariants
from tests.contract import values


def after(current: ShardManifest, **changes: Any) -> ShardManifest:
    """The version that follows `current`, with `changes`."""
    following = {
        "version": current.version + 1,
        "commit_id": "next",
        "history": (*current.history, "next"),
        **changes,
    }
    return replace(current, **following)


@pytest.mark.parametrize("original", [values.full_manifest(), values.held_manifest(), values.running()])
def test_round_trip(original: ShardManifest) -> None:
    """Every field survives being stored."""
    assert manifest.from_json(manifest.to_json(original), where="m.json") == original


PARTS = [
    (type(part).__name__, part)
    for part in (
        values.full_manifest().checkpoints[0],
        values.full_manifest().attempts[0],
        values.full_manifest().restarts,
        values.full_manifest().hints,
    )
]


@pytest.mark.parametrize(("part", "sample"), PARTS, ids=[name for name, _ in PARTS])
def test_the_samples_set_every_field(part: str, sample: Any) -> None:
    """The round trip says something about a field only if the sample does not leave it at its default."""
    for field in dataclasses.fields(sample):
        assert getattr(sample, field.name) != field.default, f"{part}.{field.name}"


def test_the_sample_manifests_set_every_field() -> None:
    """The same for the manifest itself; what a failed shard cannot have, the held one has."""
    samples = (values.full_manifest(), values.held_manifest())

    for field in dataclasses.fields(ShardManifest):
        default = field.default_factory() if callable(field.default_factory) else field.default
        assert any(getattr(sample, field.name) != default for sample in samples), field.name


def test_instants_are_stored_in_utc() -> None:
    """An instant given in another zone is the same instant, in UTC, to the millisecond."""
    eastern = datetime(2026, 1, 2, 5, 4, 5, 678999, tzinfo=timezone(timedelta(hours=2)))

    assert manifest.stamp(eastern) == "2026-01-02T03:04:05.678Z"
    assert manifest.parse_stamp("2026-01-02T03:04:05.678Z") == datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    assert manifest.stamp(None) is None
    assert manifest.parse_stamp(None) is None


def test_every_flipped_bit_is_detected() -> None:
    """A manifest with a flipped bit is refused, or (in a digit no float needs) reads the same."""
    body = manifest.to_json(values.held_manifest())
    outcomes = []

    for position in range(len(body)):
        for bit in (0, 3, 5):
            damaged = bytearray(body)
            damaged[position] ^= 1 << bit
            try:
                outcomes.append(manifest.from_json(bytes(damaged), where="m.json") == values.held_manifest())
            except (Corrupt, NewerFormat):
                outcomes.append(True)

    assert len(outcomes) == 3 * len(body)
    assert all(outcomes)


def test_a_newer_manifest_is_refused() -> None:
    """A manifest of a later format is not guessed at."""
    with pytest.raises(NewerFormat):
        manifest.from_json(documents.encode(manifest.KIND, manifest.FORMAT_VERSION + 1, {}), where="m.json")


OPTIONAL = {"completedBy"}
"""Fields that manifests of earlier versions do not have, and that say nothing about what is done."""


@pytest.mark.parametrize("field", sorted(set(json.loads(manifest.to_json(values.full_manifest()))) - OPTIONAL))
def test_each_field_is_required(field: str) -> None:
    """An intact manifest without one of its fields was written by something else: Corrupt, never a default."""
    fields = json.loads(manifest.to_json(values.full_manifest()))
    del fields[field]
    kind, version = fields.pop("kind", "?"), fields.pop("formatVersion", 0)
    fields.pop("checksum", None)

    body = documents.canonical(fields) if field == "checksum" else documents.encode(kind, version, fields)

    with pytest.raises(Corrupt, match=r"m\.json"):
        manifest.from_json(body, where="m.json")


@pytest.mark.parametrize("field", sorted(OPTIONAL))
def test_a_manifest_of_an_earlier_version_is_read(field: str) -> None:
    """Without a field that came later it means what it meant."""
    fields = json.loads(manifest.to_json(values.full_manifest()))
    del fields[field], fields["checksum"]
    kind, version = fields.pop("kind"), fields.pop("formatVersion")

    found = manifest.from_json(documents.encode(kind, version, fields), where="m.json")

    assert found == replace(values.full_manifest(), completed_by=None)


def test_a_manifest_cannot_name_what_is_outside_its_shard() -> None:
    """A checkpoint key that climbs out of the shard is Corrupt even under a valid checksum."""
    original = values.held_manifest()
    climbing = replace(original.checkpoints[0], key="g0001/data/00007/../../../secret.pt")

    with pytest.raises(Corrupt, match=r"secret\.pt"):
        manifest.from_json(manifest.to_json(replace(original, checkpoints=(climbing,))), where="m.json")


CHECKPOINT = values.checkpoint(0, 3)

BROKEN: list[tuple[str, ShardManifest, str]] = [
    ("done ranges overlap", values.running(done=((0, 3), (2, 4))), "done or quarantined twice"),
    (
        "done and quarantined",
        replace(values.running(done=((0, 3),)), quarantined=(values.quarantined(1),)),
        "done or quarantined twice",
    ),
    (
        "quarantined twice",
        replace(values.running(), quarantined=(values.quarantined(1), values.quarantined(1))),
        "done or quarantined twice",
    ),
    ("done without rows", replace(values.running(), done=((0, 3),)), "checkpoint rows and done records differ"),
    (
        "rows without done",
        replace(values.running(), checkpoints=(CHECKPOINT,)),
        "checkpoint rows and done records differ",
    ),
    (
        "complete without having read the range",
        replace(values.running(done=((0, 3),)), status=ShardStatus.COMPLETE, owner=None),
        "complete, but not every record",
    ),
    (
        "complete with a record missing",
        replace(values.running(done=((0, 3),), records=4), status=ShardStatus.COMPLETE, owner=None),
        "complete, but not every record",
    ),
    ("a record beyond the range", values.running(done=((0, 3),), records=2), "lies beyond the range's records"),
    (
        "quarantined beyond the range",
        replace(values.running(records=2), quarantined=(values.quarantined(2),)),
        "lies beyond the range's records",
    ),
    ("running without owner", replace(values.running(), owner=None), "running and having an owner"),
    ("pending with owner", replace(values.running(), status=ShardStatus.PENDING), "running and having an owner"),
    ("no history", replace(values.running(), history=()), "history does not end with the commit id"),
    ("history of another", replace(values.running(), history=("c0", "x")), "history does not end with the commit id"),
    (
        "one object named twice",
        replace(
            values.running(done=((0, 3), (4, 7))),
            checkpoints=(CHECKPOINT, replace(CHECKPOINT, first=4, next=7)),
        ),
        "a checkpoint is named twice",
    ),
    (
        "checkpoint of the future",
        replace(values.running(done=((0, 3),)), checkpoints=(replace(CHECKPOINT, epoch=2),)),
        "a checkpoint of a later epoch",
    ),
]


@pytest.mark.parametrize(("broken", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_version_that_contradicts_itself_is_named(broken: ShardManifest, message: str) -> None:
    """Each invariant of a single version is checked, whatever came before."""
    assert message in (invariants(broken, None) or "nothing")


STEPS: list[tuple[str, ShardManifest, ShardManifest | None, str]] = [
    ("first is not 1", replace(values.running(), version=2), None, "the first version must be 1"),
    ("version skipped", after(values.running(), version=3), values.running(), "version 3 must follow 1"),
    ("version kept", after(values.running(), version=1), values.running(), "version 1 must follow 1"),
    (
        "epoch falls",
        after(replace(values.running(), epoch=1)),
        replace(values.running(), epoch=2),
        "epoch 1 is below 2",
    ),
    *(
        (f"{field} moves", after(values.running(), **{field: value}), values.running(), "a shard's range never changes")
        for field, value in {"shard": 8, "generation": 2, "object": "s3://in/b", "start": 0, "end": 901}.items()
    ),
    (
        "done taken back",
        after(values.running(done=((0, 3),)), done=(), checkpoints=()),
        values.running(done=((0, 3),)),
        "taken back without a new epoch",
    ),
    (
        "quarantine taken back",
        after(values.running()),
        replace(values.running(), quarantined=(values.quarantined(1),)),
        "taken back without a new epoch",
    ),
]


@pytest.mark.parametrize(("new", "current", "message"), [case[1:] for case in STEPS], ids=[case[0] for case in STEPS])
def test_an_illegal_step_is_named(new: ShardManifest, current: ShardManifest | None, message: str) -> None:
    """Each invariant between two versions is checked."""
    assert message in (invariants(new, current) or "nothing")


@pytest.mark.parametrize(
    ("new", "current"),
    [
        (values.running(), None),
        (after(values.running()), values.running()),
        (after(values.running(), epoch=2, owner=values.OTHER_OWNER), values.running()),
        (after(values.running(done=((0, 3),)), epoch=2, done=(), checkpoints=()), values.running(done=((0, 3),))),
        (
            after(values.running(done=((0, 3),), records=3), status=ShardStatus.COMPLETE, owner=None),
            values.running(done=((0, 3),)),
        ),
    ],
    ids=["first", "same owner", "takeover", "taken back at a new epoch", "completion"],
)
def test_legal_steps_pass(new: ShardManifest, current: ShardManifest | None) -> None:
    """The checks let through what the protocol does."""
    assert invariants(new, current) is None


def test_settled_is_done_and_quarantined() -> None:
    """Neighbouring done and quarantined records make one range, and each counts as done work."""
    shard = values.full_manifest()

    assert shard.quarantined_ordinals == ((4, 5),)
    assert shard.settled == ((0, 10),)
    assert manifest.is_done(shard, 4)
    assert not manifest.is_done(shard, 10)


@pytest.mark.parametrize(
    ("status", "not_before", "expected"),
    [
        (ShardStatus.PENDING, None, True),
        (ShardStatus.PENDING, values.NOW, True),
        (ShardStatus.PENDING, values.NOW + timedelta(milliseconds=1), False),
        (ShardStatus.RUNNING, None, False),
        (ShardStatus.COMPLETE, None, False),
        (ShardStatus.FAILED, None, False),
    ],
)
def test_claimable(status: ShardStatus, not_before: datetime | None, expected: bool) -> None:  # noqa: FBT001
    """Only a pending shard past its notBefore can be claimed."""
    shard = replace(values.running(), status=status, owner=None, not_before=not_before)

    assert manifest.is_claimable(shard, values.NOW) is expected


@pytest.mark.parametrize("status", ShardStatus)
def test_final_statuses(status: ShardStatus) -> None:
    """Complete and failed need no more work; pending and running do."""
    owner = Owner(pod="p", uid="u", node="n") if status is ShardStatus.RUNNING else None

    assert replace(values.running(), status=status, owner=owner).is_final == (status.value in {"complete", "failed"})
