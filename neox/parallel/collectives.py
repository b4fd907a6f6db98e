"""The collectives of tensor parallelism, differentiable, in pairs that are each other's backward.

Shoeybi et al. 2019, arXiv 1909.08053, section 3; with sequences sharded, Korthikanti et al. 2022, arXiv 2205.05198,
section 4.2.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from neox.parallel.groups import TensorGroup


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tensor: TensorGroup) -> Tensor:
        ctx.tensor = tensor
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return sum_over_group(grads[0], ctx.tensor), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tensor: TensorGroup) -> Tensor:
        return sum_over_group(x, tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tensor: TensorGroup) -> Tensor:
        ctx.tensor = tensor
        return gather_stretches(x, tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return scatter_sum(grads[0], ctx.tensor), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tensor: TensorGroup) -> Tensor:
        ctx.tensor = tensor
        return scatter_sum(x, tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return gather_stretches(grads[0], ctx.tensor), None


def enter_region(x: Tensor, tensor: TensorGroup) -> Tensor:
    """`x` into a computation that each rank does a part of: [b, s, h], equal on all ranks; backward sums the gradients.

    Under sequence parallelism `x` is this rank's stretch, [b, s / tp, h].
    """
    if tensor.group is None:
        return x
    out: Tensor = (_Gather if tensor.is_sequence_sharded else _Copy).apply(x, tensor)
    return out


def leave_region(x: Tensor, tensor: TensorGroup) -> Tensor:
    """The sum of every rank's partial `x` [b, s, h], equal on all ranks; backward passes the gradient through.

    Under sequence parallelism this rank's stretch of it, [b, s / tp, h].
    """
    if tensor.group is None:
        return x
    out: Tensor = (_Scatter if tensor.is_sequence_sharded else _Reduce).apply(x, tensor)
    return out


def gather_stretches(x: Tensor, tensor: TensorGroup) -> Tensor:
    """[b, s / tp, h] of every rank → [b, s, h], outside autograd."""
    parts = x.new_empty(tensor.size * x.shape[0], *x.shape[1:])
    dist.all_gather_single(parts, x.contiguous(), group=tensor.group)
    return parts.unflatten(0, (tensor.size, -1)).transpose(0, 1).flatten(1, 2)


def scatter_sum(x: Tensor, tensor: TensorGroup) -> Tensor:
    """The sum of every rank's `x` [b, s, h], of which each keeps its stretch [b, s / tp, h]; outside autograd."""
    parts = x.unflatten(1, (tensor.size, -1)).transpose(0, 1)
    total = x.new_empty(parts.shape[1:])
    dist.reduce_scatter_single(total, parts.flatten(0, 1), group=tensor.group)
    return total


def sum_over_group(x: Tensor, tensor: TensorGroup) -> Tensor:
    """The sum of every rank's `x`, outside autograd."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=tensor.group)
    return total


def broadcast_json(value: Any, device: torch.device, source: int = 0, group: dist.ProcessGroup | None = None) -> Any:
    """The JSON-able `value` of rank `source` on every rank. Text, not pickle: nothing received is ever executed."""
    is_source = dist.get_rank() == source
    text = json.dumps(value).encode() if is_source else b""
    length = torch.tensor(len(text), device=device)
    dist.broadcast(length, src=source, group=group)
    buffer = torch.empty(int(length), dtype=torch.uint8, device=device)
    if is_source:
        buffer.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(buffer, src=source, group=group)
    return json.loads(bytes(buffer.cpu().tolist()))
