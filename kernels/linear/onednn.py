"""fp32 products by oneDNN, which makes AVX-512 code for any CPU that has it.

PyTorch itself leaves them to MKL, whose AVX-512 code is for Intel's CPUs alone: on an AMD EPYC of 2024 (Zen 5) it ran
at 0.4–0.5 times oneDNN's speed, forward and backward. 16-bit products PyTorch hands to oneDNN on its own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_available(device_type: str) -> bool:
    """Whether this machine was one to measure on: elsewhere PyTorch's choice is as good."""
    return (
        device_type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `kernels.linear.linear`."""
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _product(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)
    return out


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias, without gradients: the operator that torch.compile makes of a linear layer on a CPU.

    It reads `weight` with any strides and copies an `x` that is not contiguous.
    """
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = _product(grads[0], weight.T) if needs_x else None
        flat = grads[0].flatten(0, -2)
        grad_weight = _weight_gradient(flat, x.flatten(0, -2)) if needs_weight else None
        return grad_x, grad_weight, flat.sum(0) if needs_bias else None


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """gradᵀ x of [n, out] and [n, in], whichever of the two is smaller being the one that is copied."""
    if grad.shape[1] <= x.shape[1]:
        return _product(grad.T, x.T)
    return _product(x.T, grad.T).T
