"""Causal attention with the whole score matrix written out."""

import math

import torch
from torch import Tensor

from kernels.precision import widen


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """[queries, keys] bool, true where a query may look; the last query sees every key."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See `kernels.attention.attention`."""
    scores = widen(q) @ widen(k).transpose(-2, -1) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~causal_mask(q.shape[-2], k.shape[-2], q.device), -math.inf)
    return (scores.softmax(-1) @ widen(v)).to(q.dtype)
