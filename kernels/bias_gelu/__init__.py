"""Bias and tanh-approximated GELU in one step: what GPT-NeoX computes with bias_gelu_fusion."""

from torch import Tensor

from kernels.dispatch import find


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """GELU of x + bias, tanh approximation (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415).

    Args:
        x: [..., width]; bias: [width], or None for plain GELU.
    """
    out: Tensor = find("bias_gelu", x.device)(x, bias)
    return out
