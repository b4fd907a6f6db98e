"""A fake of flash-attn 2.8: its two functions' signatures, and what their documentation says they compute.

The package needs a GPU to be installed and to run, so this is all that the calls can be held against here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

calls: list[str] = []
"""Names of the functions called."""


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """q [batch, seqlen, nheads, headdim], k and v with nheads_k; half precision alone."""
    calls.append("flash_attn_func")
    assert q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256 and dropout_p == 0
    samples = zip(q, k, v, strict=True)
    return torch.stack([_attend(*sample, causal, window_size, softcap, alibi_slopes) for sample in samples])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """q [total_q, nheads, headdim]; sequence i of the batch is rows cu_seqlens_q[i] to cu_seqlens_q[i + 1]."""
    calls.append("flash_attn_varlen_func")
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and dropout_p == 0
    sizes_q, sizes_k = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert max_seqlen_q == max(sizes_q) and max_seqlen_k == max(sizes_k) and sum(sizes_q) == len(q)
    parts = zip(q.split(sizes_q), k.split(sizes_k), v.split(sizes_k), strict=True)
    return torch.cat([_attend(*part, causal, window_size, softcap, alibi_slopes) for part in parts])


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None,
) -> Tensor:
    """One sequence [seqlen, heads, headdim], a head at a time."""
    num_queries, num_keys = len(q), len(k)
    i, j = torch.arange(num_queries)[:, None] + num_keys - num_queries, torch.arange(num_keys)
    left, right = window_size
    hidden = (j > i) if causal else torch.zeros(num_queries, num_keys, dtype=torch.bool)
    hidden = hidden | (left >= 0) & (j < i - left) | (right >= 0) & (j > i + right)
    heads = []
    for head in range(q.shape[1]):
        own = head // (q.shape[1] // k.shape[1])
        scores = q[:, head].float() @ k[:, own].float().T / math.sqrt(q.shape[2])
        if softcap > 0:
            scores = softcap * (scores / softcap).tanh()
        if alibi_slopes is not None:
            assert alibi_slopes.dtype == torch.float32
            scores = scores - alibi_slopes[head] * (i - j).abs()
        heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, own].float())
    return torch.stack(heads, 1).to(q.dtype)
