"""Dropout by integer operations of PyTorch."""

import torch
from torch import Tensor

from kernels.dropout import derive


def keeps(rows: Tensor, num_columns: int, p: float) -> Tensor:
    """[..., num_columns] bool: which elements stay; 32 random bits decide each."""
    halves = derive(rows, range((num_columns + 1) // 2)).view(torch.int32)[..., :num_columns]
    return halves >= min(round(p * (1 << 32)), (1 << 32) - 1) - (1 << 31)


def dropout(x: Tensor, p: float, rows: Tensor) -> Tensor:
    """See `kernels.dropout.dropout`."""
    return torch.where(keeps(rows, x.shape[-1], p), x / (1 - p), 0)
