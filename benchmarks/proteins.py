"""Synthetic proteins with the length distributions of real inputs, and packs of them; shared by the benchmarks.

A distribution is log-normal, given by its mean and by the mean length of the protein a residue is in, E[l^2] / E[l],
which is what attention pays for. Lengths outside 20 to 1,022 are clipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from worker.batching import Batch, Item, Packer
from worker.models.protocol import Prepared

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
MIN_LENGTH, MAX_LENGTH = 20, 1022


@dataclass(frozen=True, slots=True)
class Distribution:
    """Lengths of proteins, in residues."""

    mean: float
    mean_of_residues: float
    """E[l^2] / E[l]."""


DISTRIBUTIONS = {
    "metagenome": Distribution(201, 291),
    "uniprot": Distribution(352, 493),
    "orf": Distribution(47, 54),
}


def lengths(name: str, num_proteins: int, *, seed: int = 0) -> np.ndarray:
    """Lengths of `num_proteins` proteins of a distribution, in file order."""
    shape = DISTRIBUTIONS[name]
    variance = math.log(shape.mean_of_residues / shape.mean)
    drawn = np.random.default_rng(seed).lognormal(
        math.log(shape.mean) - variance / 2, math.sqrt(variance), num_proteins
    )
    return np.clip(drawn.round(), MIN_LENGTH, MAX_LENGTH).astype(int)


def proteins(name: str, num_proteins: int, *, seed: int = 0) -> list[str]:
    """Random sequences of those lengths."""
    draw = np.random.default_rng(seed + 1)
    alphabet = np.frombuffer(LETTERS.encode(), np.uint8)
    return [draw.choice(alphabet, length).tobytes().decode() for length in lengths(name, num_proteins, seed=seed)]


def packs(prepared: Iterable[Prepared], token_budget: int) -> Iterator[Batch]:
    """Batches as the worker makes them: next-fit in file order."""
    packer = Packer(token_budget)
    for ordinal, record in enumerate(prepared):
        item = Item(
            ordinal=ordinal,
            offset=ordinal,
            next_offset=ordinal + 1,
            position=ordinal,
            id=str(ordinal),
            payload=record.payload,
            num_tokens=record.num_tokens,
            is_truncated=record.is_truncated,
        )
        if (closed := packer.add(item)) is not None:
            yield closed
    if (last := packer.flush()) is not None:
        yield last
