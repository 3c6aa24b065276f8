"""ESM-2 weights: from the Hugging Face layout (`config.json` and safetensors), or random for any published size.

Pickled checkpoints (`pytorch_model.bin`) are never loaded: a pickle can run code. Tensors go to the device one by one,
in the dtype of the forward pass, so host memory never holds the model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open

from contract.errors import ModelError
from worker.models.esm2_tokens import VOCABULARY

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
VOCABULARY_FILE = "vocab.txt"

TOKEN_DROPOUT_SCALE = 1 - 0.15 * 0.8
"""ESM-2 was trained with 12 % of its input embeddings zeroed, and scales them down to match when nothing is masked.
Source: EsmEmbeddings in transformers; no payload of ours holds a `<mask>`."""

FREQUENCIES = "rotary_embeddings.inv_freq"
"""Rotary frequencies, where a checkpoint keeps them: for the model, or (older) in each layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Esm2Config:
    """What of `config.json` decides the forward pass."""

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocab_size: int = len(VOCABULARY)
    layer_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    token_dropout: bool = True

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads


PUBLISHED_SIZES: Mapping[str, Esm2Config] = {
    "8M": Esm2Config(num_layers=6, hidden_size=320, num_heads=20, intermediate_size=1280),
    "35M": Esm2Config(num_layers=12, hidden_size=480, num_heads=20, intermediate_size=1920),
    "150M": Esm2Config(num_layers=30, hidden_size=640, num_heads=20, intermediate_size=2560),
    "650M": Esm2Config(num_layers=33, hidden_size=1280, num_heads=20, intermediate_size=5120),
    "3B": Esm2Config(num_layers=36, hidden_size=2560, num_heads=40, intermediate_size=10240),
    "15B": Esm2Config(num_layers=48, hidden_size=5120, num_heads=40, intermediate_size=20480),
}
"""Source: `config.json` of facebook/esm2_t{6,12,30,33,36,48}_*."""


class TensorReader(Protocol):
    """Where tensors come from."""

    def has(self, name: str) -> bool:
        """Whether the tensor is there."""
        ...

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor, on the CPU. Names are those of EsmModel. Raises ModelError when it is missing or misshapen."""
        ...


class LayerWeights(NamedTuple):
    """One transformer layer; the matrices are [out, in]. A tuple, so that torch.compile sees plain tensors."""

    attention_norm: torch.Tensor
    attention_norm_bias: torch.Tensor
    query_key_value: torch.Tensor
    """Query, key and value under each other: one product instead of three."""
    query_key_value_bias: torch.Tensor
    attention_out: torch.Tensor
    attention_out_bias: torch.Tensor
    feed_forward_norm: torch.Tensor
    feed_forward_norm_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    down: torch.Tensor
    down_bias: torch.Tensor

    def to(self, dtype: torch.dtype) -> LayerWeights:
        """These weights in `dtype`; no copy where they have it."""
        return LayerWeights(*(tensor.to(dtype) for tensor in self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Esm2Weights:
    """A model on its device."""

    config: Esm2Config
    embedding: torch.Tensor
    """[vocabulary, D], with the token-dropout scale in it."""
    inverse_frequencies: torch.Tensor
    """[K / 2] float32: rotary embedding."""
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    """float32, like its bias: the last step is taken in fp32 whatever the precision."""
    final_norm_bias: torch.Tensor


def load_weights(directory: Path, *, device: torch.device, dtype: torch.dtype) -> Esm2Weights:
    """The model in a directory of the Hugging Face layout. Raises ModelError naming the file and the remedy."""
    config = _read_config(directory / CONFIG_FILE)
    _check_vocabulary(directory / VOCABULARY_FILE)
    return build_weights(config, SafetensorsReader(directory), device=device, dtype=dtype)


def random_weights(seed: int, size: str, *, device: torch.device, dtype: torch.dtype) -> Esm2Weights:
    """A published size with weights drawn from `seed`: the same model on every machine and device."""
    return build_weights(PUBLISHED_SIZES[size], RandomReader(seed), device=device, dtype=dtype)


def build_weights(config: Esm2Config, reader: TensorReader, *, device: torch.device, dtype: torch.dtype) -> Esm2Weights:
    """All tensors of a model, fused and cast. Raises ModelError when one is missing, misshapen or overflows `dtype`."""
    width, inner = config.hidden_size, config.intermediate_size

    def placed(tensor: torch.Tensor, name: str) -> torch.Tensor:
        cast = tensor.to(device=device, dtype=dtype)
        if dtype == torch.float16 and not bool(torch.isfinite(cast).all()):
            raise ModelError(f"{name} does not fit fp16: set model.precision to bf16 or fp32")
        return cast

    def tensor(name: str, *shape: int) -> torch.Tensor:
        return placed(reader.read(name, shape), name)

    def layer(prefix: str) -> LayerWeights:
        projections = [f"{prefix}.attention.self.{part}" for part in ("query", "key", "value")]
        return LayerWeights(
            attention_norm=tensor(f"{prefix}.attention.LayerNorm.weight", width),
            attention_norm_bias=tensor(f"{prefix}.attention.LayerNorm.bias", width),
            query_key_value=torch.cat([tensor(f"{name}.weight", width, width) for name in projections]),
            query_key_value_bias=torch.cat([tensor(f"{name}.bias", width) for name in projections]),
            attention_out=tensor(f"{prefix}.attention.output.dense.weight", width, width),
            attention_out_bias=tensor(f"{prefix}.attention.output.dense.bias", width),
            feed_forward_norm=tensor(f"{prefix}.LayerNorm.weight", width),
            feed_forward_norm_bias=tensor(f"{prefix}.LayerNorm.bias", width),
            up=tensor(f"{prefix}.intermediate.dense.weight", inner, width),
            up_bias=tensor(f"{prefix}.intermediate.dense.bias", inner),
            down=tensor(f"{prefix}.output.dense.weight", width, inner),
            down_bias=tensor(f"{prefix}.output.dense.bias", width),
        )

    embedding = reader.read("embeddings.word_embeddings.weight", (config.vocab_size, width)).float()
    if config.token_dropout:
        embedding = embedding * TOKEN_DROPOUT_SCALE
    return Esm2Weights(
        config=config,
        embedding=placed(embedding, "embeddings.word_embeddings.weight"),
        inverse_frequencies=_inverse_frequencies(config, reader).to(device),
        layers=tuple(layer(f"encoder.layer.{index}") for index in range(config.num_layers)),
        final_norm=reader.read("encoder.emb_layer_norm_after.weight", (width,)).to(device, torch.float32),
        final_norm_bias=reader.read("encoder.emb_layer_norm_after.bias", (width,)).to(device, torch.float32),
    )


def _inverse_frequencies(config: Esm2Config, reader: TensorReader) -> torch.Tensor:
    """Those of the checkpoint where it has them: older ones were rounded to fp16, and trained that way."""
    for name in (FREQUENCIES, f"encoder.layer.0.attention.self.{FREQUENCIES}"):
        if reader.has(name):
            return reader.read(name, (config.head_dim // 2,)).float()
    return 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)


class SafetensorsReader:
    """Tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names."""

    def __init__(self, directory: Path) -> None:
        self._files = {path: _open_safetensors(path) for path in _weight_files(directory)}
        self._places = {
            _current_name(name): (path, name)
            for path, file in self._files.items()
            for name in file.keys()  # noqa: SIM118  (a safetensors file is not iterable)
        }
        self._directory = directory

    def has(self, name: str) -> bool:
        """Whether any file has the tensor."""
        return name in self._places

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor, read now."""
        if name not in self._places:
            raise ModelError(f"{self._directory}: tensor {name} is missing; is this an ESM-2 checkpoint?")
        path, stored_name = self._places[name]
        tensor: torch.Tensor = self._files[path].get_tensor(stored_name)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"{path}: tensor {stored_name} is {tuple(tensor.shape)} where {CONFIG_FILE} says {shape}; "
                f"the two are not of one model"
            )
        return tensor


def _current_name(name: str) -> str:
    """The name EsmModel gives a tensor: EsmForMaskedLM puts it under `esm.`, transformers 5 saves norms as gamma, beta."""
    name = name.removeprefix("esm.")
    stem, _, last = name.rpartition(".")
    return f"{stem}.{'weight' if last == 'gamma' else 'bias'}" if last in {"gamma", "beta"} else name


def _weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS_FILE).exists():
        return [directory / WEIGHTS_FILE]
    index = directory / INDEX_FILE
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index}: no weight_map can be read ({error!r}); copy the file again") from error
        if any(Path(name).name != name for name in names):
            raise ModelError(f"{index}: names files outside its directory; refused")
        return [directory / name for name in names]
    raise ModelError(
        f"{directory}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there; only safetensors are read (a pickled "
        f"pytorch_model.bin can run code): save it again with save_pretrained(..., safe_serialization=True)"
    )


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); copy it again") from error


class RandomReader:
    """Tensors drawn as the published models were initialised: deviation 0.02, norms one, biases zero."""

    _DEVIATION = 0.02

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def has(self, name: str) -> bool:
        """Frequencies follow from the config; everything else can be drawn."""
        return not name.endswith(FREQUENCIES)

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor of this name: whatever order they are read in, the same."""
        if name.endswith(".bias"):
            return torch.zeros(shape)
        if len(shape) == 1:
            return torch.ones(shape)
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        # Uniform, not normal: its bits do not depend on the vector unit of the CPU that draws them.
        bound = self._DEVIATION * math.sqrt(3)
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _read_config(path: Path) -> Esm2Config:
    try:
        fields = json.loads(path.read_bytes())
        config = Esm2Config(
            num_layers=_count(fields, "num_hidden_layers"),
            hidden_size=_count(fields, "hidden_size"),
            num_heads=_count(fields, "num_attention_heads"),
            intermediate_size=_count(fields, "intermediate_size"),
            vocab_size=_count(fields, "vocab_size"),
            layer_norm_eps=float(fields["layer_norm_eps"]),
            rope_theta=_rope_theta(fields),
            token_dropout=bool(fields.get("token_dropout", False)),
        )
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; model.source must hold {CONFIG_FILE} and {WEIGHTS_FILE}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ModelError(f"{path}: not the configuration of an ESM-2 model ({error!r})") from error
    wanted = {"model_type": "esm", "position_embedding_type": "rotary"}
    off = [f"{key} is {fields.get(key)!r}, not {value!r}" for key, value in wanted.items() if fields.get(key) != value]
    off += [f"{key} is set" for key in ("emb_layer_norm_before", "is_folding_model", "is_decoder") if fields.get(key)]
    if config.hidden_size % config.num_heads or config.head_dim % 2:
        off.append(f"hidden_size {config.hidden_size} does not split into {config.num_heads} even heads")
    if config.vocab_size != len(VOCABULARY):
        off.append(f"vocab_size is {config.vocab_size}, not {len(VOCABULARY)}")
    if off:
        raise ModelError(f"{path}: not an ESM-2 model: {'; '.join(off)}; bring it as model `torch` instead")
    return config


def _count(fields: Mapping[str, Any], key: str) -> int:
    value = fields[key]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {value!r}")
    return value


def _rope_theta(fields: Mapping[str, Any]) -> float:
    """The base of the rotary frequencies; newer configurations may keep it under `rope_parameters`."""
    nested = fields.get("rope_parameters") or {}
    return float(nested.get("rope_theta", fields.get("rope_theta", 10_000.0)))


def _check_vocabulary(path: Path) -> None:
    """The parent tokenises without looking at the model, so a model with other ids must be refused."""
    if path.exists() and tuple(path.read_text(encoding="utf-8").split()) != VOCABULARY:
        raise ModelError(f"{path}: not the vocabulary of ESM-2; bring this model as model `torch` instead")
