"""Causal attention with the whole score matrix written out."""

import math

import torch
from torch import Tensor

from kernels.precision import widen


def visible(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys] bool, true where a query may look; the last query sees the last key."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    last = num_keys - num_queries
    mask = ones.tril(last)
    return mask if window is None else mask & ones.triu(last - window + 1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, window: int | None, softcap: float | None
) -> Tensor:
    """See `kernels.attention.attention`."""
    group = q.shape[1] // k.shape[1]
    k, v = widen(k).repeat_interleave(group, 1), widen(v).repeat_interleave(group, 1)
    scores = widen(q) @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + widen(bias)
    scores = scores.masked_fill(~visible(q.shape[-2], k.shape[-2], window, q.device), -math.inf)
    return (scores.softmax(-1) @ v).to(q.dtype)
