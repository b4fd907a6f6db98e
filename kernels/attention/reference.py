"""Causal attention with the whole score matrix written out."""

import math

from torch import Tensor

from kernels.attention.documents import Documents, visible
from kernels.dropout import dropout
from kernels.precision import widen


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
        scores = scores + widen(bias)
    mask = visible(q.shape[-2], k.shape[-2], window, q.device) if documents is None else documents.mask(window)
    probabilities = scores.masked_fill(~mask, -math.inf).softmax(-1)
    if dropout_rows is not None:
        probabilities = dropout(probabilities, dropout_p, dropout_rows)
    return (probabilities @ v).to(q.dtype)
