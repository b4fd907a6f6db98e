"""Tensor-parallel forms of the model's layers and branches, which take over the weights they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.linear import linear
from neox.model.block import Block
from neox.model.cache import LayerCache
from neox.model.context import PLAIN, Context
from neox.parallel.collectives import enter_region, gather_stretches, leave_region
from neox.parallel.groups import TensorGroup


class Regathered:
    """A whole activation of which this rank keeps its stretch: backward gathers the rest again, once for all readers.

    The extra all-gather is the price of sequence parallelism's memory (Korthikanti et al. 2022, section 4.2.2).
    """

    def __init__(self, tensor: TensorGroup) -> None:
        self.num_readers = 0
        self._tensor, self._whole = tensor, torch.empty(0)

    def take(self, stretch: Tensor) -> Tensor:
        """[b, s, h] for one reader's backward, from what autograd kept of the stretch."""
        whole = self._whole if self._whole.numel() else gather_stretches(stretch, self._tensor)
        self.num_readers -= 1
        self._whole = whole if self.num_readers else torch.empty(0)
        return whole


class _LinearOfGathered(torch.autograd.Function):
    """`linear` that keeps the stretch of its input instead of the whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stretch: Tensor, weight: Tensor, bias: Tensor | None, again: Regathered) -> Tensor:
        ctx.save_for_backward(stretch, weight)
        ctx.again, ctx.has_bias = again, bias is not None
        again.num_readers += 1
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        stretch, weight = ctx.saved_tensors
        rows = grads[0].flatten(0, -2)
        grad_weight = linear(rows.T, ctx.again.take(stretch).flatten(0, -2).T)
        return linear(grads[0], weight.T), None, grad_weight, rows.sum(0) if ctx.has_bias else None, None


class ColumnParallelLinear(nn.Module):
    """Linear whose output features are dealt to the ranks: input equal on all, output each rank's slice."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor, add_bias: bool = True) -> Tensor:
        bias = self.bias if add_bias else None
        if not hasattr(x, "gathered_from"):
            return linear(x, self.weight, bias)
        stretch, again = x.gathered_from
        out: Tensor = _LinearOfGathered.apply(x, stretch, self.weight, bias, again)
        return out


class RowParallelLinear(nn.Module):
    """Linear whose input features are dealt to the ranks: input each rank's slice, output its part of the sum.

    The bias is whole on every rank, and for the region to add, once, after the sum.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class VocabParallelEmbedding(nn.Module):
    """Embedding whose rows are dealt to the ranks; output equal on all, or each rank's stretch of the sequences."""

    def __init__(self, weight: nn.Parameter, tensor: TensorGroup) -> None:
        super().__init__()
        self.weight, self.tensor = weight, tensor

    def forward(self, tokens: Tensor) -> Tensor:
        local = tokens - self.tensor.index * self.weight.shape[0]
        is_elsewhere = (local < 0) | (local >= self.weight.shape[0])
        rows = F.embedding(local.masked_fill(is_elsewhere, 0), self.weight)
        return leave_region(rows.masked_fill(is_elsewhere.unsqueeze(-1), 0), self.tensor)


def enter(x: Tensor, tensor: TensorGroup) -> Tensor:
    """`enter_region`, for column-parallel layers to read."""
    whole = enter_region(x, tensor)
    if tensor.is_sequence_sharded:
        whole.gathered_from = x, Regathered(tensor)  # type: ignore[attr-defined]
    return whole


def branch(
    forward: Callable[..., Tensor], row: RowParallelLinear, tensor: TensorGroup, x: Tensor, *rest: Any
) -> Tensor:
    """Attention or MLP, whose `forward` ends in `row`, between two collectives: what goes in and out is as in one rank.

    Args:
        x: [b, s, h], or this rank's stretch. rest: what `forward` is given beside it.
    """
    y = leave_region(forward(enter(x, tensor), *rest), tensor)
    return y if row.bias is None else y + row.bias


def side_by_side(
    block: Block, tensor: TensorGroup, x: Tensor, context: Context = PLAIN, cache: LayerCache | None = None
) -> Tensor:
    """A block with parallel residual, both branches' outputs in one sum over the ranks; shapes as of `branch`.

    As GPT-NeoX has it (megatron/model/transformer.py: `reduce` where gpt_j_residual). Branches that start from one norm
    enter together too.
    """
    normed = enter(block.attn_norm(x), tensor)
    mlp_in = normed if block.mlp_norm is None else enter(block.mlp_norm(x), tensor)
    y = x + leave_region(block.attn(normed, context, cache) + block.mlp(mlp_in), tensor)
    for bias in (row_layer(block.attn).bias, row_layer(block.mlp).bias):
        y = y if bias is None else y + bias
    return y


def row_layer(module: nn.Module) -> RowParallelLinear:
    """The last layer of attention or MLP."""
    return next(child for child in module.children() if isinstance(child, RowParallelLinear))


def can_join(block: Block) -> bool:
    """Whether nothing comes between a block's branches and the sum with its input."""
    is_bare = isinstance(block.attn_post_norm, nn.Identity) and isinstance(block.mlp_post_norm, nn.Identity)
    return block.is_parallel and is_bare and block.attn_dropout.p == 0 and block.mlp_dropout.p == 0
