"""Causal scaled dot-product attention."""

from torch import Tensor

from kernels.dispatch import find


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v, each query seeing the keys up to its own position.

    Args:
        q: [batch, heads, queries, head_dim]: the last `queries` positions of the keys.
        k, v: [batch, heads, keys, head_dim] with keys ≥ queries.

    Returns:
        [batch, heads, queries, head_dim]; softmax in fp32.
    """
    out: Tensor = find("attention", q.device)(q, k, v)
    return out
