"""Tensor-parallel forms of the model's linear layer and embedding; each takes over the weights it is given."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.linear import linear
from neox.parallel.collectives import copy_to_group, reduce_from_group
from neox.parallel.groups import TensorGroup


class ColumnParallelLinear(nn.Module):
    """Linear whose output features are dealt to the ranks: input equal on all, output each rank's slice."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, tensor: TensorGroup) -> None:
        super().__init__()
        self.weight, self.bias, self.tensor = weight, bias, tensor

    def forward(self, x: Tensor, add_bias: bool = True) -> Tensor:
        return linear(copy_to_group(x, self.tensor), self.weight, self.bias if add_bias else None)


class RowParallelLinear(nn.Module):
    """Linear whose input features are dealt to the ranks: input each rank's slice, output equal on all.

    The bias is whole on every rank and added once, after the sum.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, tensor: TensorGroup) -> None:
        super().__init__()
        self.weight, self.bias, self.tensor = weight, bias, tensor

    def forward(self, x: Tensor, add_bias: bool = True) -> Tensor:
        y = reduce_from_group(linear(x, self.weight), self.tensor)
        return y + self.bias if add_bias and self.bias is not None else y


class VocabParallelEmbedding(nn.Module):
    """Embedding whose rows are dealt to the ranks; output equal on all."""

    def __init__(self, weight: nn.Parameter, tensor: TensorGroup) -> None:
        super().__init__()
        self.weight, self.tensor = weight, tensor

    def forward(self, tokens: Tensor) -> Tensor:
        local = tokens - self.tensor.index * self.weight.shape[0]
        is_elsewhere = (local < 0) | (local >= self.weight.shape[0])
        rows = F.embedding(local.masked_fill(is_elsewhere, 0), self.weight)
        return reduce_from_group(rows.masked_fill(is_elsewhere.unsqueeze(-1), 0), self.tensor)
