"""Causal scaled dot-product attention."""

from torch import Tensor

from kernels.dispatch import find


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """softmax(cap(q kᵀ / sqrt(head_dim)) + bias) v, each query seeing the keys up to its own position.

    Args:
        q: [batch, heads, queries, head_dim]: the last `queries` positions of the keys.
        k, v: [batch, kv heads, keys, head_dim] with keys ≥ queries; each kv head serves heads / kv heads
            consecutive query heads.
        bias: [heads, queries, keys], added to the scores after the cap.
        window: keys that a query sees, its own included; None: all.
        softcap: cap(s) = softcap · tanh(s / softcap) (Gemma 2, arXiv 2408.00118); None: cap(s) = s.

    Returns:
        [batch, heads, queries, head_dim]; softmax in fp32.
    """
    out: Tensor = find("attention", q.device)(q, k, v, bias, window, softcap)
    return out
