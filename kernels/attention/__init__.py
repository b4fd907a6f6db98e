"""Causal scaled dot-product attention."""

from torch import Tensor

from kernels.attention.documents import Documents
from kernels.dispatch import find


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    documents: Documents | None = None,
    dropout_p: float = 0.0,
    dropout_rows: Tensor | None = None,
) -> Tensor:
    """dropout(softmax(cap(q kᵀ / sqrt(head_dim)) + bias)) v, each query seeing the keys up to its own position.

    Args:
        q: [batch, heads, queries, head_dim]: the last `queries` positions of the keys.
        k, v: [batch, kv heads, keys, head_dim] with keys ≥ queries; each kv head serves heads / kv heads
            consecutive query heads.
        bias: [heads, queries, keys], added to the scores after the cap; or ALiBi's slopes, [heads] fp32 without a
            gradient: -slope · distance of query and key is added.
        window: keys that a query sees, its own included; None: all.
        softcap: cap(s) = softcap · tanh(s / softcap) (Gemma 2, arXiv 2408.00118); None: cap(s) = s.
        documents: of the keys; what a query sees is of its own document. None: one per sample.
        dropout_p, dropout_rows: `kernels.dropout.dropout` of the probabilities, with a key for each row of them,
            [batch, heads, queries] int64; None: no dropout.

    Returns:
        [batch, heads, queries, head_dim]; softmax in fp32.
    """
    function = find("attention", q.device)
    out: Tensor = function(q, k, v, bias, window, softcap, documents, dropout_p, dropout_rows)
    return out
