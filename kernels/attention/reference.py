"""Causal attention with the whole score matrix written out."""

import math

import torch
from torch import Tensor

from kernels.attention.documents import Documents, visible
from kernels.dropout import dropout
from kernels.precision import widen


def score_bias(bias: Tensor, num_queries: int, num_keys: int) -> Tensor:
    """[heads, queries, keys] of a bias that may be ALiBi's slopes, [heads]; the last query is that of the last key."""
    if bias.dim() == 3:
        return bias
    keys = torch.arange(num_keys, device=bias.device)
    return -bias[:, None, None] * (keys[num_keys - num_queries :, None] - keys)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    window: int | None,
    softcap: float | None,
    documents: Documents | None,
    dropout_p: float,
    dropout_rows: Tensor | None,
) -> Tensor:
    """See `kernels.attention.attention`."""
    group = q.shape[1] // k.shape[1]
    k, v = widen(k).repeat_interleave(group, 1), widen(v).repeat_interleave(group, 1)
    scores = widen(q) @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if bias is not None:
        scores = scores + widen(score_bias(bias, q.shape[-2], k.shape[-2]))
    num_queries, num_keys = q.shape[-2], k.shape[-2]
    if documents is None:
        mask = visible(num_queries, num_keys, window, q.device)
    else:
        mask = documents.mask(num_queries, window)
    probabilities = scores.masked_fill(~mask, -math.inf).softmax(-1)
    if dropout_rows is not None:
        probabilities = dropout(probabilities, dropout_p, dropout_rows)
    return (probabilities @ v).to(q.dtype)
