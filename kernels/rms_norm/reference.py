"""Root-mean-square normalisation as the definition reads."""

import torch
from torch import Tensor

from kernels.precision import widen


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.rms_norm.rms_norm`."""
    wide = widen(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * widen(weight)).to(x.dtype)
