"""Bias and GELU as the definition reads."""

import math

import torch
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See `kernels.bias_gelu.bias_gelu`."""
    y = x.float() if bias is None else x.float() + bias.float()
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    return (0.5 * y * (1 + torch.tanh(inner))).to(x.dtype)
