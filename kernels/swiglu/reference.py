"""SwiGLU as the definition reads."""

import torch
from torch import Tensor

from kernels.precision import widen


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `kernels.swiglu.swiglu`."""
    wide = widen(gate)
    return (wide * torch.sigmoid(wide) * widen(up)).to(gate.dtype)
