"""The ESM-2 alphabet against transformers' tokeniser."""

import re

import pytest
from transformers import EsmTokenizer

from contract.settings import ModelSettings, TooLong
from worker.models.esm2_tokens import CLS, EOS, UNK, VOCABULARY, token_ids
from worker.models.protocol import RecordTooLong, Unusable
from worker.models.registry import load_preparer

# As in the published vocab.txt, written down here a second time on purpose.
PUBLISHED = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]

SEQUENCES = ("MKTAYIAK", "mktayiak", "XBZUOJX", "M*K.A-L", "A", "J", "".join(c for c in PUBLISHED if len(c) == 1) * 30)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The tokeniser of transformers with the published vocabulary."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(PUBLISHED))
    return EsmTokenizer(str(path))


def preparer(**options):
    """The parent's half."""
    return load_preparer(ModelSettings(name="esm2", source="random:0", parameters={"size": "8M"}, **options))


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_ids_are_those_of_transformers(tokenizer, sequence):
    """Upper-cased, with the special tokens around it, a sequence has the ids of EsmTokenizer."""
    ids = [CLS, *token_ids(sequence), EOS]

    assert ids == tokenizer(sequence.upper())["input_ids"]


def test_every_byte_that_is_a_token_has_the_published_id():
    """The vocabulary is the published one, and the table maps each letter to its place in it."""
    letters = [token for token in PUBLISHED if len(token) == 1]

    assert list(VOCABULARY) == PUBLISHED
    assert list(token_ids("".join(letters))) == [PUBLISHED.index(letter) for letter in letters]


def test_each_unknown_letter_is_a_token_of_its_own(tokenizer):
    """Where transformers merges a run of unknown letters, residues keep their places here."""
    assert list(token_ids("AJ*JA")) == [5, UNK, UNK, UNK, 5]
    assert tokenizer("AJ*JA")["input_ids"][1:-1] == [5, UNK, 5]


def test_one_stop_at_the_end_is_dropped():
    """A trailing `*` is the stop codon; a second one, or one inside, is an unknown residue."""
    assert token_ids("MK*") == token_ids("MK")
    assert list(token_ids("MK**")) == [*token_ids("MK"), UNK]


@pytest.mark.parametrize("sequence", ["", "*"])
def test_a_sequence_without_residues_is_unusable(sequence):
    """There is no mean over nothing."""
    with pytest.raises(Unusable, match="the sequence is empty"):
        preparer().prepare(sequence)


@pytest.mark.parametrize("letter", ["1", " ", "<", "é", "\u4e00", "\x00", "?"])
def test_what_is_no_residue_is_named_with_its_place(letter):
    """An illegal character is this record's fault; the message says which and where."""
    with pytest.raises(Unusable, match=re.escape(f"illegal letter {letter!r} at position 3")):
        preparer().prepare(f"MK{letter}A")


def test_what_is_no_text_is_refused_with_a_remedy():
    """A JSON object in place of a sequence is this record's fault, and the message says what to set."""
    with pytest.raises(Unusable, match=r"not list; set input\.valueField"):
        preparer().prepare(["MKT"])


def test_cost_counts_the_special_tokens():
    """A record costs its residues and two special tokens; its payload is one byte per residue."""
    prepared = preparer().prepare("MKTA*")

    assert (prepared.num_tokens, len(prepared.payload), prepared.is_truncated) == (6, 4, False)


def test_the_models_own_limit_is_1022_residues():
    """Without maxLength 1,022 residues are used; the stop at the end does not count."""
    whole, cut = preparer().prepare("M" * 1022 + "*"), preparer().prepare("M" * 1022 + "K")

    assert (whole.num_tokens, whole.is_truncated) == (1024, False)
    assert (cut.payload, cut.is_truncated) == (whole.payload, True)


def test_a_record_above_the_limit_can_be_refused_instead():
    """Under onTooLong: quarantine nothing is cut in silence."""
    strict = preparer(max_length=5, on_too_long=TooLong.QUARANTINE)

    assert strict.prepare("MKTAY").num_tokens == 7
    with pytest.raises(RecordTooLong, match="6 tokens, above maxLength 5"):
        strict.prepare("MKTAYI")


def test_a_limit_above_the_models_own_is_honoured():
    """Rotary positions have no end: maxLength may be raised."""
    assert preparer(max_length=5000).prepare("M" * 4000).num_tokens == 4002
