"""ESM-2 as a packed forward: sequences end to end, no padding, attention within each by cumulative lengths.

Equal to transformers' EsmModel within 1e-5 in fp32. The same pack gives the same bits (on one device type and thread
count); in another pack a record's row may differ by rounding, because the matrix kernels choose their blocking by the
number of tokens: about 1e-6 of its size in fp32, 1e-2 in bf16.

B sequences, T tokens, R residues, D hidden, H heads, K width of a head.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.nn.functional import embedding, embedding_bag, gelu, layer_norm, linear

from contract.errors import ModelError
from contract.models import random_seed
from contract.settings import ModelSettings, RowKind
from worker.models.esm2_pack import Pack, attention, build_pack
from worker.models.esm2_tokens import token_ids
from worker.models.esm2_weights import Esm2Weights, LayerWeights, load_weights, random_weights
from worker.models.options import compute_dtype, memory_errors, stored_dtype
from worker.models.protocol import Rows
from worker.models.weights_cache import local_directory

_WARM_UP_SEQUENCES = (
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV",
    "MSLFRVVALLPLLVLAACGSTNSQPTTVAEPAPPQPVQMQATPAPAPSLQPVAE",
)


def load_esm2(settings: ModelSettings, device: torch.device) -> Esm2Encoder:
    """The encoder with its weights on the device. Raises ModelError when they are missing or do not fit."""
    dtype, seed = compute_dtype(settings), random_seed(settings.source)
    if seed is not None:
        weights = random_weights(seed, settings.parameters["size"], device=device, dtype=dtype)
    else:
        weights = load_weights(local_directory(settings.source, os.environ), device=device, dtype=dtype)
    return Esm2Encoder(settings, weights, device)


class Esm2Encoder:
    """The model process's half."""

    def __init__(self, settings: ModelSettings, weights: Esm2Weights, device: torch.device) -> None:
        self._weights = weights
        self._device = device
        self._compute_dtype = compute_dtype(settings)
        self._stored_dtype = stored_dtype(settings)
        self._kind = settings.kind
        # Attention stays outside what is compiled: its arguments change with every pack. Compilation specialises on the
        # first pack and generalises over T on the second; warm_up runs both.
        compiled: Callable[..., Callable[..., torch.Tensor]] = (
            partial(torch.compile, fullgraph=True) if settings.parameters.get("compile", False) else lambda step: step
        )
        self._before_attention = compiled(_before_attention)
        self._after_attention = compiled(_after_attention)

    def warm_up(self) -> None:
        """Two packs of different size; raises ModelError when the rows are not finite."""
        payloads = [token_ids(sequence) for sequence in _WARM_UP_SEQUENCES]
        for batch in (payloads, payloads[:1]):
            if not bool(torch.isfinite(self.encode(batch).values).all()):
                raise ModelError(
                    f"the model gives rows that are not finite for ordinary proteins in "
                    f"{self._compute_dtype}, stored as {self._stored_dtype}: set model.precision to bf16 or fp32"
                )

    def encode(self, payloads: Sequence[bytes]) -> Rows:
        """Mean over residues, [B, D], or one row per residue, [R, D]; never a row for a special token."""
        return self._rows(payloads, self._compute_dtype, self._stored_dtype)

    def encode_in_fp32(self, payloads: Sequence[bytes]) -> Rows:
        """As `encode`, computed and returned in fp32 (with the weights as they were loaded)."""
        return self._rows(payloads, torch.float32, torch.float32)

    @torch.inference_mode()
    def _rows(self, payloads: Sequence[bytes], dtype: torch.dtype, stored: torch.dtype) -> Rows:
        with memory_errors():
            pack = build_pack(payloads, self._device)
            hidden_TD = self._forward(pack, dtype)
            if self._kind is RowKind.PER_TOKEN:
                return Rows(values=hidden_TD[pack.residues_R].to(stored).cpu(), splits=pack.num_residues)
            # A bag per sequence: sums in fp32 and in order, so the same bits every time (index_add_ on a GPU has none).
            pooled_BD = embedding_bag(pack.residues_R, hidden_TD, pack.first_residues_B, mode="mean")
            return Rows(values=pooled_BD.to(stored).cpu(), splits=None)

    def _forward(self, pack: Pack, dtype: torch.dtype) -> torch.Tensor:
        """hidden_TD in float32, after the final norm."""
        weights, config = self._weights, self._weights.config
        angles = torch.outer(pack.positions_T, weights.inverse_frequencies)
        # [T, 1, 1, K] and [T, 1, 1, K / 2]: one angle for query and key, and for all heads
        cos, sin = (part.to(dtype)[:, None, None, :] for part in (angles.cos().repeat(1, 2), angles.sin()))
        attend = attention(pack.num_residues, head_dim=config.head_dim, dtype=dtype, device=self._device)
        hidden_TD = embedding(pack.token_ids_T, weights.embedding).to(dtype)
        for stored_layer in weights.layers:
            layer = stored_layer.to(dtype)
            query_THK, key_THK, value_THK = self._before_attention(hidden_TD, cos, sin, layer, config.layer_norm_eps)
            mixed_TD = attend(query_THK, key_THK, value_THK).flatten(1)
            hidden_TD = self._after_attention(hidden_TD, mixed_TD, layer, config.layer_norm_eps)
        # In fp32: pooling needs it anyway, and the norm's own rounding to bf16 is saved.
        return layer_norm(
            hidden_TD.float(),
            (config.hidden_size,),
            weights.final_norm,
            weights.final_norm_bias,
            config.layer_norm_eps,
        )


def _before_attention(
    hidden_TD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layer: LayerWeights, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(query_THK, key_THK, value_THK), rotated by position."""
    normed_TD = layer_norm(hidden_TD, hidden_TD.shape[-1:], layer.attention_norm, layer.attention_norm_bias, eps)
    fused = linear(normed_TD, layer.query_key_value, layer.query_key_value_bias)
    query_key_value = fused.view(len(fused), 3, -1, cos.shape[-1])  # [T, 3, H, K]
    rotated = _rotated(query_key_value[:, :2], cos, sin)
    return rotated[:, 0], rotated[:, 1], query_key_value[:, 2]


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [..., K]: the halves (a, b) become (a cos - b sin, b cos + a sin). `cos` is there twice.

    One product and two in-place sums on its halves: half the memory traffic of rotating with a concatenation.
    """
    first, second = x.chunk(2, dim=-1)
    rotated = x * cos
    rotated_first, rotated_second = rotated.chunk(2, dim=-1)
    rotated_first.addcmul_(second, sin, value=-1)
    rotated_second.addcmul_(first, sin)
    return rotated


def _after_attention(hidden_TD: torch.Tensor, mixed_TD: torch.Tensor, layer: LayerWeights, eps: float) -> torch.Tensor:
    """hidden_TD after attention's projection and the feed-forward block, both with their residual."""
    # Bias first, then the product onto it in place: the residual costs no pass of its own.
    hidden_TD = (hidden_TD + layer.attention_out_bias).addmm_(mixed_TD, layer.attention_out.t())
    normed_TD = layer_norm(hidden_TD, hidden_TD.shape[-1:], layer.feed_forward_norm, layer.feed_forward_norm_bias, eps)
    inner = gelu(linear(normed_TD, layer.up, layer.up_bias))
    return (hidden_TD + layer.down_bias).addmm_(inner, layer.down.t())
