"""Layer normalisation as the definition reads."""

import torch
from torch import Tensor

from kernels.precision import widen


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `kernels.layer_norm.layer_norm`."""
    wide = widen(x)
    centred = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * scale * widen(weight) + widen(bias)).to(x.dtype)
