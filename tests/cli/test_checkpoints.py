"""Tests of reading checkpoints in input order."""

from __future__ import annotations

import gc
import weakref

import torch
from hypothesis import given
from hypothesis import strategies as st

from cli.checkpoints import Rows, in_input_order
from contract.manifest import Checkpoint
from tests.cli.outputs import NOW


def checkpoint(number: int, first: int, end: int) -> Checkpoint:
    """A checkpoint as a manifest names it."""
    return Checkpoint(
        key=str(number),
        number=number,
        epoch=1,
        first=first,
        next=end,
        records=1,
        bytes=1,
        sha256="",
        created_at=NOW,
        seconds=1,
    )


def rows(ordinals: list[int]) -> Rows:
    """Content whose every part can be told from the ordinals."""
    return Rows(
        embeddings=torch.tensor([[float(item)] for item in ordinals]),
        ids=[str(item) for item in ordinals],
        ordinals=ordinals,
        offsets=ordinals,
        row_splits=None,
        metadata={},
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.lists(st.integers(0, 4), min_size=40, max_size=40))
def test_rows_come_in_the_order_of_their_ordinals(lengths: list[int], holes: list[int]) -> None:
    """However often records inside a checkpoint's range got a checkpoint of their own: each row once, in order."""
    contents: dict[str, list[int]] = {}
    checkpoints: list[Checkpoint] = []
    at = 0
    for length in lengths:
        whole = list(range(at, at + 4 * length))
        at += 4 * length
        # Level 0 holds what is in no hole; level 1 fills the holes, level 2 those in the fillings.
        for level in range(3):
            members = [item for item in whole if min(holes[item % 40], 2) == level]
            if members:
                item = checkpoint(len(checkpoints), members[0], members[-1] + 1)
                checkpoints.append(item)
                contents[item.key] = members

    pieces = list(in_input_order(checkpoints, lambda item: rows(contents[item.key])))

    found = [value for piece in pieces for value in piece.embeddings[:, 0].tolist()]
    assert found == sorted(value for members in contents.values() for value in members)
    assert all(piece.start < piece.end for piece in pieces)


def test_one_checkpoint_is_in_memory_at_a_time() -> None:
    """Each is loaded when its first record is reached, after the one before it has gone."""
    loaded: list[weakref.ref[torch.Tensor]] = []
    alive_at_load: list[int] = []

    def load(item: Checkpoint) -> Rows:
        gc.collect()
        alive_at_load.append(sum(reference() is not None for reference in loaded))
        content = rows([item.first, item.first + 1])
        loaded.append(weakref.ref(content.embeddings))
        return content

    for piece in in_input_order([checkpoint(number, 2 * number, 2 * number + 2) for number in range(6)], load):
        del piece

    assert alive_at_load == [0] * 6


def test_what_cannot_be_loaded_is_left_out() -> None:
    """The others come as if it were not there."""
    pieces = in_input_order(
        [checkpoint(0, 0, 2), checkpoint(1, 2, 4), checkpoint(2, 4, 6)],
        lambda item: None if item.number == 1 else rows([item.first, item.first + 1]),
    )

    assert [value for piece in pieces for value in piece.rows.ordinals] == [0, 1, 4, 5]


def test_a_record_with_two_rows_gives_both() -> None:
    """It is for verify to say so; nothing is silently dropped."""
    pieces = in_input_order([checkpoint(0, 0, 2), checkpoint(1, 1, 3)], lambda item: rows([item.first, item.first + 1]))

    assert [value for piece in pieces for value in piece.embeddings[:, 0].tolist()] == [0, 1, 1, 2]
