"""The precision that references compute in."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is where it is wider: in fp64 a reference is the truth that others are measured against."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
