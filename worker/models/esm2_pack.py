"""A pack: sequences end to end without padding, and attention that stays within each of them.

T tokens of all sequences, R of them residues, B sequences, H heads, K width of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from worker.models.esm2_tokens import CLS, EOS, NUM_SPECIAL_TOKENS

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(query_THK, key_THK, value_THK) -> mixed_THK, each sequence by itself."""

_FIRST_FLASH_CAPABILITY = (8, 0)
"""Flash attention needs Ampere or newer."""
_MAX_FLASH_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class Pack:
    """A batch as the model sees it, on its device."""

    token_ids_T: torch.Tensor
    """int64; `<cls>` residues `<eos>`, sequence after sequence."""
    positions_T: torch.Tensor
    """float32; counts from 0 in each sequence."""
    residues_R: torch.Tensor
    """int64; which tokens are residues, in order."""
    first_residues_B: torch.Tensor
    """int64; where in `residues_R` each sequence begins."""
    num_residues: tuple[int, ...]
    """Per sequence."""


def build_pack(payloads: Sequence[bytes], device: torch.device) -> Pack:
    """The pack of some sequences of token ids (without special tokens, none empty)."""
    num_residues = np.fromiter(map(len, payloads), np.int64, len(payloads))
    lengths = num_residues + NUM_SPECIAL_TOKENS
    ends = np.cumsum(lengths)
    starts = ends - lengths
    parts = (part for ids in payloads for part in (bytes([CLS]), ids, bytes([EOS])))
    token_ids = np.frombuffer(b"".join(parts), np.uint8).astype(np.int64)
    positions = (np.arange(ends[-1]) - np.repeat(starts, lengths)).astype(np.float32)
    is_residue = np.ones(ends[-1], np.bool_)
    is_residue[starts] = is_residue[ends - 1] = False
    return Pack(
        token_ids_T=torch.from_numpy(token_ids).to(device),
        positions_T=torch.from_numpy(positions).to(device),
        residues_R=torch.from_numpy(np.flatnonzero(is_residue)).to(device),
        first_residues_B=torch.from_numpy(np.cumsum(num_residues) - num_residues).to(device),
        num_residues=tuple(num_residues.tolist()),
    )


def attention(num_residues: Sequence[int], *, head_dim: int, dtype: torch.dtype, device: torch.device) -> Attend:
    """Attention within the sequences of a pack, by the fastest kernel that the device and dtype have."""
    lengths = [num + NUM_SPECIAL_TOKENS for num in num_residues]
    if _has_varlen_kernel(head_dim, dtype, device):
        return _varlen_attention(lengths, device)
    return _grouped_attention(lengths, device)


def _has_varlen_kernel(head_dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim % 8 == 0
        and head_dim <= _MAX_FLASH_HEAD_DIM
        and torch.cuda.get_device_capability(device) >= _FIRST_FLASH_CAPABILITY
    )


def _varlen_attention(lengths: Sequence[int], device: torch.device) -> Attend:
    """One kernel over the whole pack."""
    offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)).to(device)
    longest = max(lengths)
    # One split makes a sequence's attention independent of the others in the pack; torch 2.11 has no such choice, and
    # ROCm refuses it.
    has_splits = "num_splits" in inspect.signature(varlen_attn).parameters and torch.version.hip is None
    kernel: Callable[..., Any] = partial(varlen_attn, num_splits=1) if has_splits else varlen_attn

    def attend(query_THK: torch.Tensor, key_THK: torch.Tensor, value_THK: torch.Tensor) -> torch.Tensor:
        mixed_THK: torch.Tensor = kernel(query_THK, key_THK, value_THK, offsets, offsets, longest, longest)
        return mixed_THK

    return attend


def _grouped_attention(lengths: Sequence[int], device: torch.device) -> Attend:
    """One call for all sequences of a length: for the CPU, fp32 and GPUs without flash attention."""
    starts = np.cumsum(lengths) - lengths
    of_length: dict[int, list[int]] = {}
    for start, length in zip(starts.tolist(), lengths, strict=True):
        of_length.setdefault(length, []).append(start)
    groups: list[tuple[int, slice | torch.Tensor]] = [
        (length, slice(first[0], first[0] + length))  # a slice is a view, an index would copy
        if len(first) == 1
        else (length, torch.from_numpy((np.array(first)[:, None] + np.arange(length)).ravel()).to(device))
        for length, first in of_length.items()
    ]

    def attend(query_THK: torch.Tensor, key_THK: torch.Tensor, value_THK: torch.Tensor) -> torch.Tensor:
        mixed_THK = torch.empty_like(query_THK, memory_format=torch.contiguous_format)
        for length, rows in groups:
            # [sequences, H, length, K], as the kernel wants them
            query, key, value = (
                x[rows].reshape(-1, length, *x.shape[1:]).transpose(1, 2) for x in (query_THK, key_THK, value_THK)
            )
            mixed = scaled_dot_product_attention(query, key, value)
            mixed_THK[rows] = mixed.transpose(1, 2).flatten(0, 1)
        return mixed_THK

    return attend
