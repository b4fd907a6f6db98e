"""Causal attention by PyTorch's scaled_dot_product_attention, which picks a flash kernel where it can."""

import math

import torch.nn.functional as F
from torch import Tensor

from kernels.attention import reference
from kernels.attention.documents import Documents, visible


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
    if softcap is not None or dropout_rows is not None:
        # PyTorch's operator has no place for the one, and draws the other from a state, not from keys.
        return reference.attention(q, k, v, bias, window, softcap, documents, dropout_p, dropout_rows)
    num_queries, num_keys = q.shape[-2], k.shape[-2]
    is_grouped = q.shape[1] != k.shape[1]
    reaches_all = window is None or window >= num_keys
    if bias is None and documents is None and reaches_all and num_queries == num_keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)
    # PyTorch's is_causal aligns the first query with the first key; a cache needs the last with the last.
    mask: Tensor | None = None
    if documents is not None:
        mask = documents.mask(num_queries, window)
    elif num_queries > 1 or not reaches_all:
        mask = visible(num_queries, num_keys, window, q.device)
    if bias is not None:
        bias = reference.score_bias(bias, num_queries, num_keys).to(q.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    if is_grouped and mask is not None and not q.is_cpu:
        # On GPUs the one kernel that takes a mask takes no groups: without this the scores would be written out.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        is_grouped = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=is_grouped)
