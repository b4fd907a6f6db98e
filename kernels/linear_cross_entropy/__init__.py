"""Mean cross entropy of the logits of a linear head, without the logits."""

from collections.abc import Callable

from torch import Tensor

from kernels.dispatch import find

Gather = Callable[[Tensor], Tensor]
"""[...] of this rank → [ranks, ...] of all ranks that hold a slice of the vocabulary, the same on each of them."""


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    softcap: float | None = None,
    first: int = 0,
    gather: Gather | None = None,
) -> Tensor:
    """Mean of -log softmax(x Wᵀ)[label] over the positions whose label is not negative.

    Args:
        x: [..., h]; weight: [vocab, h] in the same dtype, or a slice of the vocabulary. labels: [...] int64, each in
            0…whole vocabulary - 1, or negative where the position does not count. softcap: each logit z becomes
            cap · tanh(z / cap). first: id of the slice's first row. gather: where `weight` is a slice, the exchange
            with the holders of the others; the gradient of `x` is then this slice's part, to be summed over the ranks.

    Returns:
        fp32 scalar, nats per position; 0 where no position counts.
    """
    out: Tensor = find("linear_cross_entropy", x.device)(x, weight, labels, softcap, first, gather)
    return out
