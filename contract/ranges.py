"""Sets of record ordinals as sorted, disjoint, half-open ranges: ((0, 128), (200, 300)). Pure.

A shard of millions of records with a few checkpoints stays a few dozen bytes in its manifest.
"""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]
Ranges = tuple[Range, ...]


def normalised(pairs: Iterable[Range]) -> Ranges:
    """Sorted, merged and without empty ranges; overlapping and touching ranges become one."""
    merged: list[list[int]] = []
    for start, end in sorted(pairs):
        if end <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return tuple((start, end) for start, end in merged)


def union(left: Ranges, right: Iterable[Range]) -> Ranges:
    """All ordinals of either."""
    return normalised((*left, *right))


def difference(left: Ranges, right: Ranges) -> Ranges:
    """The ordinals of `left` that `right` lacks."""
    kept: list[Range] = []
    for range_start, end in left:
        start = range_start
        for cut_start, cut_end in right:
            if cut_end <= start or cut_start >= end:
                continue
            if cut_start > start:
                kept.append((start, cut_start))
            start = max(start, cut_end)
        if start < end:
            kept.append((start, end))
    return tuple(kept)


def intersection(left: Ranges, right: Ranges) -> Ranges:
    """The ordinals in both."""
    return normalised((max(a, c), min(b, d)) for a, b in left for c, d in right if max(a, c) < min(b, d))


def count(ranges: Ranges) -> int:
    """How many ordinals."""
    return sum(end - start for start, end in ranges)


def contains(ranges: Ranges, ordinal: int) -> bool:
    """Whether `ordinal` is in the set."""
    return any(start <= ordinal < end for start, end in ranges)


def from_ordinals(ordinals: Iterable[int]) -> Ranges:
    """Ranges of single ordinals, in any order."""
    return normalised((ordinal, ordinal + 1) for ordinal in ordinals)
