"""The ESM-2 alphabet, and the parent's half of `esm2`: a sequence to one byte per residue.

A 256-byte table does the work, as one `bytes.translate` per sequence; special tokens are added when a pack is built.
One residue is always one token. Hugging Face's tokeniser merges a run of unknown letters (`JJ`) into one `<unk>`, which
would shift every later residue; here each of them is an `<unk>` of its own. On everything else the ids are the same.
"""

from __future__ import annotations

from contract.settings import ModelSettings
from worker.models.options import fitted
from worker.models.protocol import Prepared, Unusable

VOCABULARY = (
    "<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>",
)  # fmt: skip
"""Token of each id. Source: `vocab.txt` of the published checkpoints (facebook/esm2_*), the same in all sizes."""
CLS, EOS, UNK = (VOCABULARY.index(token) for token in ("<cls>", "<eos>", "<unk>"))
NUM_SPECIAL_TOKENS = 2
"""`<cls>` before and `<eos>` after each sequence."""
DEFAULT_MAX_LENGTH = 1022
"""Residues; the published models were trained on crops of 1,024 tokens with the two special ones."""

_ILLEGAL = 255


def _token_table() -> bytes:
    """256 token ids for bytes.translate: letters in either case, `*` and `J` as `<unk>`, everything else illegal."""
    table = bytearray([_ILLEGAL]) * 256
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ*.-":
        token_id = VOCABULARY.index(letter) if letter in VOCABULARY else UNK
        table[ord(letter)] = table[ord(letter.lower())] = token_id
    return bytes(table)


_TOKEN_IDS = _token_table()


def token_ids(sequence: str) -> bytes:
    """One id per residue, without special tokens; one trailing `*` (the stop codon of a translation) is dropped.

    Raises:
        Unusable: no residue, or a character that is no letter, `*`, `.` or `-`.
    """
    text = sequence.removesuffix("*")
    if not text:
        raise Unusable("the sequence is empty")
    # "replace" keeps one byte per character; `?` is illegal like what it stands for.
    ids = text.encode("ascii", "replace").translate(_TOKEN_IDS)
    if (position := ids.find(_ILLEGAL)) >= 0:
        raise Unusable(f"illegal letter {text[position]!r} at position {position + 1} of the sequence")
    return ids


class Esm2Preparer:
    """The parent's half."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings

    def prepare(self, value: object) -> Prepared:
        """Token ids of a sequence, at most `max_length` residues."""
        if not isinstance(value, str):
            raise Unusable(f"esm2 reads text, not {type(value).__name__}; set input.valueField to a text member")
        ids, is_truncated = fitted(token_ids(value), self._settings, default_max_length=DEFAULT_MAX_LENGTH)
        return Prepared(payload=ids, num_tokens=len(ids) + NUM_SPECIAL_TOKENS, is_truncated=is_truncated)
