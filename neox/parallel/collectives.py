"""The pair of collectives of tensor parallelism, differentiable (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053)."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from neox.parallel.groups import TensorGroup


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def copy_to_group(x: Tensor, tensor: TensorGroup) -> Tensor:
    """`x`, equal on all ranks, into a computation that each rank does a part of: backward sums the gradients."""
    if tensor.group is None:
        return x
    out: Tensor = _Copy.apply(x, tensor.group)
    return out


def reduce_from_group(x: Tensor, tensor: TensorGroup) -> Tensor:
    """The sum of every rank's partial `x`, equal on all ranks; backward passes the gradient through."""
    if tensor.group is None:
        return x
    out: Tensor = _Reduce.apply(x, tensor.group)
    return out


def sum_over_group(grad: Tensor, tensor: TensorGroup) -> Tensor:
    """The sum of every rank's `grad`, outside autograd."""
    total = grad.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=tensor.group)
    return total


def broadcast_json(value: Any, device: torch.device, source: int = 0) -> Any:
    """The JSON-able `value` of rank `source` on every rank. Text, not pickle: nothing received is ever executed."""
    is_source = dist.get_rank() == source
    text = json.dumps(value).encode() if is_source else b""
    length = torch.tensor(len(text), device=device)
    dist.broadcast(length, src=source)
    buffer = torch.empty(int(length), dtype=torch.uint8, device=device)
    if is_source:
        buffer.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(buffer, src=source)
    return json.loads(bytes(buffer.cpu().tolist()))
