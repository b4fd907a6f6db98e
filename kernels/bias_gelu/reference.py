"""Bias and GELU as the definition reads."""

import math

import torch
from torch import Tensor

from kernels.precision import widen


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See `kernels.bias_gelu.bias_gelu`."""
    y = widen(x) if bias is None else widen(x) + widen(bias)
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    return (0.5 * y * (1 + torch.tanh(inner))).to(x.dtype)
