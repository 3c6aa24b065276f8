"""`kmer`: frequencies of pairs of amino acids. Real, cheap and checkable by hand; the model of demos and tests.

Column `20 * i + j` of a row is the count of the pair (letter i, letter j) in `ACDEFGHIKLMNPQRSTVWY`, divided by the
counts of all 400 pairs. Letters are upper-cased; a pair with any other letter is skipped; without any pair the row is
zero. Counts are whole numbers, so a row's bits do not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from contract.settings import ModelSettings
from worker.models.options import fitted, stored_dtype
from worker.models.protocol import Prepared, Rows, Unusable

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NUM_LETTERS = len(LETTERS)
NUM_PAIRS = NUM_LETTERS**2
_OTHER = NUM_LETTERS
"""Code of everything that is not one of the letters; also what separates the records of a batch."""


def _code_table() -> bytes:
    """256 codes for bytes.translate; upper and lower case alike."""
    table = bytearray([_OTHER]) * 256
    for code, letter in enumerate(LETTERS):
        table[ord(letter)] = table[ord(letter.lower())] = code
    return bytes(table)


_CODES = _code_table()


class KmerPreparer:
    """The parent's half: letters to codes 0 .. 20."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings

    def prepare(self, value: object) -> Prepared:
        """Codes of a text, one byte per letter."""
        if not isinstance(value, str):
            raise Unusable(f"kmer reads text, not {type(value).__name__}; set input.valueField to a text member")
        text, is_truncated = fitted(value, self._settings, default_max_length=None)
        # "replace" keeps one byte per letter: a letter beyond ASCII is an "other" one.
        codes = text.encode("ascii", "replace").translate(_CODES)
        return Prepared(payload=codes, num_tokens=max(1, len(codes)), is_truncated=is_truncated)


class KmerEncoder:
    """The model process's half: counts on the CPU, whatever the device."""

    def __init__(self, settings: ModelSettings) -> None:
        self._dtype = stored_dtype(settings)

    def warm_up(self) -> None:
        """Nothing can fail here that would not fail at import."""

    def encode(self, payloads: Sequence[bytes]) -> Rows:
        """[B, 400] frequencies in the stored dtype."""
        return Rows(values=torch.from_numpy(pair_frequencies(payloads)).to(self._dtype), splits=None)

    def encode_in_fp32(self, payloads: Sequence[bytes]) -> Rows:
        """As `encode`, in float32."""
        return Rows(values=torch.from_numpy(pair_frequencies(payloads)), splits=None)


def pair_frequencies(payloads: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """[B, 400] float32 frequencies of the pairs in each payload of codes. Pure."""
    num_records = len(payloads)
    # Each record is followed by one separator, so that no pair spans two records: codes, 20, codes, 20.
    flat = np.frombuffer(b"".join(part for payload in payloads for part in (payload, bytes([_OTHER]))), np.uint8)
    widths = np.fromiter((len(payload) + 1 for payload in payloads), np.int64, num_records)
    record_of = np.repeat(np.arange(num_records, dtype=np.int64), widths)
    first, second = flat[:-1], flat[1:]
    is_pair = (first != _OTHER) & (second != _OTHER)
    bins = record_of[:-1][is_pair] * NUM_PAIRS + first[is_pair].astype(np.int64) * NUM_LETTERS + second[is_pair]
    counts = np.bincount(bins, minlength=num_records * NUM_PAIRS).reshape(num_records, NUM_PAIRS)
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Dividing in float64 and rounding once more gives the very bits of a float32 division (53 >= 2 * 24 + 2).
    frequencies: npt.NDArray[np.float32] = (counts / totals).astype(np.float32)
    return frequencies
