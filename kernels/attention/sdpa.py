"""Causal attention by PyTorch's scaled_dot_product_attention, which picks a flash kernel where it can."""

import math

import torch.nn.functional as F
from torch import Tensor

from kernels.attention import reference
from kernels.attention.reference import visible


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, window: int | None, softcap: float | None
) -> Tensor:
    """See `kernels.attention.attention`."""
    if softcap is not None:  # PyTorch's operator has no place for it
        return reference.attention(q, k, v, bias, window, softcap)
    num_queries, num_keys = q.shape[-2], k.shape[-2]
    is_grouped = q.shape[1] != k.shape[1]
    reaches_all = window is None or window >= num_keys
    if bias is None and reaches_all and num_queries == num_keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)
    # PyTorch's is_causal aligns the first query with the first key; a cache needs the last with the last.
    mask = None if reaches_all and num_queries == 1 else visible(num_queries, num_keys, window, q.device)
    if bias is not None:
        bias = bias.to(q.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=is_grouped)
