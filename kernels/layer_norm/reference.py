"""Layer normalisation as the definition reads."""

import torch
from torch import Tensor

from kernels.precision import widen


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `kernels.layer_norm.layer_norm`."""
    wide = widen(x)
    centred = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    scaled = centred * scale * widen(weight)
    return (scaled if bias is None else scaled + widen(bias)).to(x.dtype)
