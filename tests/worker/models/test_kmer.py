"""kmer against a count by hand."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import SpecError
from contract.settings import ModelSettings, RowKind, TooLong
from worker.models.protocol import RecordTooLong, Unusable
from worker.models.registry import load_encoder, load_preparer

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
TEXTS = st.text(alphabet=LETTERS + LETTERS.lower() + "XBZ*-é", max_size=60)


def rows(texts: list[str], **options) -> torch.Tensor:
    """[texts, 400] by both halves."""
    model = ModelSettings(name="kmer", **options)
    preparer = load_preparer(model)
    return load_encoder(model, device="cpu").encode([preparer.prepare(text).payload for text in texts]).values


def counted_by_hand(text: str) -> np.ndarray:
    """One row, by a dictionary."""
    letters = [letter.upper() for letter in text]
    pairs = Counter(first + second for first, second in pairwise(letters) if first in LETTERS and second in LETTERS)
    counts = np.array([pairs[first + second] for first in LETTERS for second in LETTERS], np.float32)
    return counts / np.float32(counts.sum()) if counts.any() else counts


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_rows_are_the_pair_frequencies_to_the_last_bit(texts):
    """A row is the count of each pair over the count of all pairs, whatever else is in the batch."""
    batch = rows(texts)

    assert batch.dtype == torch.float32
    assert np.array_equal(batch.numpy(), np.stack([counted_by_hand(text) for text in texts]))


def test_the_first_letter_is_the_major_one():
    """AC is column 1 and CA column 20, in the order ACDEFGHIKLMNPQRSTVWY."""
    row = rows(["AC", "ca", "YY"])

    assert row.argmax(dim=1).tolist() == [1, 20, 399]


@pytest.mark.parametrize("text", ["", "A", "AXC", "XX", "é"])
def test_a_record_without_a_pair_gives_zeros(text):
    """No pair of the twenty letters: a row of zeros, not NaN, and at least one token of the budget."""
    assert not rows([text]).any()
    assert load_preparer(ModelSettings(name="kmer")).prepare(text).num_tokens == max(1, len(text))


def test_pairs_never_span_two_records():
    """The last letter of a record and the first of the next are no pair."""
    assert not rows(["A", "C"]).any()


def test_rows_come_in_the_stored_dtype_and_the_second_look_in_fp32():
    """`dtype` decides what is stored; encode_in_fp32 gives float32."""
    model = ModelSettings(name="kmer", dtype="float16")
    encoder = load_encoder(model, device="cpu")
    payload = load_preparer(model).prepare("ACDA").payload

    assert encoder.encode([payload]).values.dtype == torch.float16
    assert encoder.encode_in_fp32([payload]).values.dtype == torch.float32
    assert encoder.encode([payload]).splits is None


def test_length_is_limited_only_when_asked():
    """A million letters pass; with maxLength they are cut or refused, as the spec says."""
    long = "AC" * 500_000
    free = load_preparer(ModelSettings(name="kmer")).prepare(long)
    cut = load_preparer(ModelSettings(name="kmer", max_length=3)).prepare("ACAC")
    strict = load_preparer(ModelSettings(name="kmer", max_length=3, on_too_long=TooLong.QUARANTINE))

    assert (free.num_tokens, free.is_truncated) == (1_000_000, False)
    assert (cut.num_tokens, cut.is_truncated) == (3, True)
    assert not strict.prepare("ACA").is_truncated
    with pytest.raises(RecordTooLong, match="4 tokens, above maxLength 3"):
        strict.prepare("ACAC")


def test_what_is_no_text_is_refused_with_a_remedy():
    """A JSON object in place of a sequence is this record's fault, and the message says what to set."""
    with pytest.raises(Unusable, match=r"not dict; set input\.valueField"):
        load_preparer(ModelSettings(name="kmer")).prepare({"sequence": "AC"})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"parameters": {"k": 3}}, "no parameter k; it takes none"), ({"kind": RowKind.PER_TOKEN}, "set it to pooled")],
)
def test_settings_it_cannot_honour_are_refused(options, message):
    """A parameter or row kind that kmer does not have is an error of the spec."""
    with pytest.raises(SpecError, match=message):
        load_preparer(ModelSettings(name="kmer", **options))
