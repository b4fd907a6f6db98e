"""The linear layer's product."""

from torch import Tensor

from kernels.dispatch import find


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias.

    Args:
        x: [..., in]; weight: [out, in], both with any strides; bias: [out], or None for zero.

    Returns:
        [..., out].
    """
    out: Tensor = find("linear", x.device)(x, weight, bias)
    return out
