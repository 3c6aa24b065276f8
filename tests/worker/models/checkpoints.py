"""ESM-2 checkpoints made by transformers, with every tensor random (its own initialisation leaves biases at zero)."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import EsmConfig, EsmForMaskedLM, EsmModel

from worker.models.esm2_tokens import CLS, EOS, token_ids

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZE_8M = {"hidden_size": 320, "num_hidden_layers": 6, "num_attention_heads": 20, "intermediate_size": 1280}


def esm_config(**sizes) -> EsmConfig:
    """The published configuration with other sizes."""
    return EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        layer_norm_eps=1e-5,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        **sizes,
    )


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every parameter drawn: gains around one, everything else around zero."""
    torch.manual_seed(20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = "norm" in name.lower() and name.endswith("weight")
            parameter.normal_(1.0 if is_gain else 0.0, 0.2 if is_gain else 0.05)
    return model.eval()


def saved(directory: Path, *, is_masked_lm: bool = False, shard_size: str = "1GB", **sizes) -> EsmModel:
    """A model with the given sizes, saved to the directory; returns its EsmModel."""
    config = esm_config(**sizes)
    model = randomised(EsmForMaskedLM(config) if is_masked_lm else EsmModel(config, add_pooling_layer=False))
    model.save_pretrained(directory, max_shard_size=shard_size)
    return model.esm if is_masked_lm else model


def edit_config(directory: Path, **changes) -> None:
    """Set fields of config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(directory: Path, **changes: torch.Tensor | None) -> None:
    """Set, or with None remove, tensors of model.safetensors; `__` stands for `.` in names."""
    path = directory / "model.safetensors"
    tensors = {**load_file(path), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, {"format": "pt"})


@torch.inference_mode()
def reference_rows(model: EsmModel, sequence: str) -> torch.Tensor:
    """[residues, D] of one sequence, by transformers."""
    ids = torch.tensor([[CLS, *token_ids(sequence), EOS]])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 1:-1]


def proteins(*lengths: int, alphabet: str = "ACDEFGHIKLMNPQRSTVWYXBZUOJ*-.", seed: int = 0) -> list[str]:
    """Random sequences of these lengths over the whole alphabet; none ends in a stop."""
    draw = random.Random(seed)
    return ["".join(draw.choices(alphabet, k=length - 1)) + "M" for length in lengths]
