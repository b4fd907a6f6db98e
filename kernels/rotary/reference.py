"""Rotary embedding as the definition reads."""

import torch
from torch import Tensor

from kernels.precision import widen


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.rotary.rotary`."""
    half = cos.shape[-1]
    first, second = widen(x[..., :half]), widen(x[..., half : 2 * half])
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([part.to(x.dtype) for part in turned] + [x[..., 2 * half :]], dim=-1)
