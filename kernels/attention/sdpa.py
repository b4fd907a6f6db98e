"""Causal attention by PyTorch's scaled_dot_product_attention, which picks a flash kernel where it can."""

import torch.nn.functional as F
from torch import Tensor

from kernels.attention.reference import causal_mask


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See `kernels.attention.attention`."""
    num_queries, num_keys = q.shape[-2], k.shape[-2]
    if num_queries == num_keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # PyTorch's is_causal aligns the first query with the first key; a cache needs the last with the last.
    mask = None if num_queries == 1 else causal_mask(num_queries, num_keys, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
