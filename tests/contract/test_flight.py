"""The flight recorder: facts always fit, and text of others is never mistaken for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.flight import Flight, from_text, to_text
from contract.names import MAX_TERMINATION_MESSAGE_BYTES

FLIGHT = Flight(
    shard=42,
    epoch=3,
    first=100,
    next=164,
    first_offset=4096,
    first_id="sp|P1",
    has_claimed=True,
    has_committed=True,
    model_restarts=2,
    exit_code=75,
    detail="store unreachable",
)
BASE_BYTES = len(to_text(Flight(shard=42, epoch=3, first=100, next=164)).encode())


@pytest.mark.parametrize("flight", [FLIGHT, Flight()])
def test_round_trip(flight: Flight) -> None:
    """What the worker wrote is what the judge reads."""
    assert from_text(to_text(flight)) == flight


@given(st.text(max_size=30), st.integers(0, 9000))
def test_any_detail_fits(piece: str, length: int) -> None:
    """Whatever the detail, the file stays within the kubelet's limit, keeps all facts, and cuts the detail's end only."""
    detail = (piece * (length // max(1, len(piece)) + 1))[:length]

    text = to_text(Flight(shard=42, epoch=3, first=100, next=164, detail=detail))

    read = from_text(text)
    assert len(text.encode()) <= MAX_TERMINATION_MESSAGE_BYTES
    assert read is not None
    assert (read.shard, read.epoch, read.first, read.next) == (42, 3, 100, 164)
    assert detail.startswith(read.detail)


@pytest.mark.parametrize("character", ["a", '"', "\n", "é", "蛋", "🧬"])
def test_a_long_detail_uses_the_room_there_is(character: str) -> None:
    """A detail in any script is cut to what fits, not to nothing."""
    text = to_text(Flight(shard=42, epoch=3, first=100, next=164, detail=character * 20_000))

    assert MAX_TERMINATION_MESSAGE_BYTES - 64 <= len(text.encode()) <= MAX_TERMINATION_MESSAGE_BYTES


def test_a_long_id_is_cut() -> None:
    """An id comes from the input and may have any length; the facts must fit beside it."""
    read = from_text(to_text(Flight(shard=42, first_id="x" * 10_000)))

    assert read is not None
    assert read.shard == 42
    assert 0 < len(read.first_id) < MAX_TERMINATION_MESSAGE_BYTES // 2


def test_a_short_detail_is_kept_whole() -> None:
    """Nothing is cut that fits."""
    room = MAX_TERMINATION_MESSAGE_BYTES - BASE_BYTES
    read = from_text(to_text(Flight(shard=42, epoch=3, first=100, next=164, detail="x" * room)))

    assert read is not None
    assert read.detail == "x" * room


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback (most recent call last):",
        "[]",
        "null",
        "7",
        "{}",
        '{"kind": "other"}',
        json.dumps({"kind": "inferencerun-flight"}),
        to_text(FLIGHT)[:-1],
        to_text(FLIGHT)[1:],
        "[" * 4000,
        *(
            json.dumps(json.loads(to_text(FLIGHT)) | wrong)
            for wrong in (
                {"shard": [1]},
                {"shard": -1},
                {"epoch": "2"},
                {"first": True},
                {"next": 1.5},
                {"firstOffset": {}},
                {"firstId": None},
                {"claimed": 1},
                {"committed": None},
                {"modelRestarts": None},
                {"exitCode": "0"},
                {"detail": []},
            )
        ),
    ],
)
def test_other_texts_are_no_flight(text: str) -> None:
    """An empty file, a log's tail or a cut file is None: nothing is concluded from it."""
    assert from_text(text) is None
