"""Cross entropy of a linear head, a chunk of positions at a time: the gradient takes the place of the logits at once.

The idea is that of Liger Kernel's fused linear cross entropy (Hsu et al. 2024, arXiv 2410.10989): the loss is a scalar,
so the gradient of each chunk's logits is known in the forward pass but for one factor, which backward multiplies in.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.linear import linear
from kernels.linear_cross_entropy import Gather

SLICE_NUMEL = 1 << 22
"""Of the weight's gradient, to which a chunk's part is added slice by slice: smaller ones take longer, larger ones more
memory."""
CHUNK_NUMEL = 1 << 23
"""Logits alive at a time on CPUs: 32 MiB of fp32, as fast as twice as many, processor time counted, for Pythia-14M's
50,304 entries. The fewer there are, the more often the sum of the weight's gradient passes through memory."""
GPU_CHUNK_NUMEL = 1 << 27
"""On GPUs 512 MiB: products of some thousand rows, which few of their units can do nothing with."""


@dataclass(frozen=True)
class SliceLoss:
    """Cross entropy of logits over a slice of the vocabulary; arguments as of `linear_cross_entropy`."""

    softcap: float | None
    first: int
    gather: Gather | None

    def with_gradient(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every row, fp32, and its gradient in the place and dtype of `logits` [n, vocab], which are lost."""
        wide = logits.float()  # `logits` themselves where they are fp32
        tanh = None
        if self.softcap is not None:
            tanh = wide.div_(self.softcap).tanh_().clone()
            wide *= self.softcap
        losses = self._softmax_minus_target(wide, labels)
        if tanh is not None:
            wide *= 1 - tanh.square_()
        if wide.dtype != logits.dtype:
            logits.copy_(wide)
        return losses, logits

    def _softmax_minus_target(self, wide: Tensor, labels: Tensor) -> Tensor:
        row = labels - self.first
        is_here = (row >= 0) & (row < wide.shape[-1])
        row = torch.where(is_here, row, 0).unsqueeze(-1)
        target = torch.where(is_here, wide.gather(-1, row).squeeze(-1), 0)
        largest = wide.amax(-1)
        torch.softmax(wide, -1, out=wide)  # row by row: each is read before it is written
        log_sum = largest - wide.amax(-1).log()  # the largest probability is 1 / Σ exp(logit - largest)
        if self.gather is not None:
            local = log_sum
            every = self.gather(torch.stack([log_sum, target]))
            log_sum, target = every[:, 0].logsumexp(0), every[:, 1].sum(0)
            wide *= (local - log_sum).exp().unsqueeze(-1)
        wide.scatter_add_(-1, row, torch.where(is_here, -1.0, 0.0).unsqueeze(-1))
        is_counted = labels >= 0
        if not wide.is_cpu or not bool(is_counted.all()):  # to ask a GPU is to wait for it
            wide *= is_counted.unsqueeze(-1)
        return torch.where(is_counted, log_sum - target, 0)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, loss_of: SliceLoss, is_training: bool) -> Tensor:
        num_counted = (labels >= 0).sum().clamp(min=1)
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(x) if is_training else None
        # A sum over all chunks, so fp32; [h, vocab]: products are quickest with the smaller factor, x, transposed.
        grad_weight_t = weight.new_zeros(weight.T.shape, dtype=torch.float32) if is_training else None
        chunk_numel = CHUNK_NUMEL if x.is_cpu else GPU_CHUNK_NUMEL
        for chunk in descending(len(x), len(weight), chunk_numel) if len(x) else ():
            losses, gradient = loss_of.with_gradient(linear(x[chunk], weight), labels[chunk])
            loss += losses.sum()
            if grad_x is not None and grad_weight_t is not None:
                grad_x[chunk] = linear(gradient, weight.T)
                _add_product(grad_weight_t, x[chunk], gradient)
            del gradient  # before the next chunk's logits
        if is_training:
            ctx.save_for_backward(grad_x, grad_weight_t, num_counted)
            ctx.dtype = weight.dtype
        return loss / num_counted

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight_t, num_counted = ctx.saved_tensors
        factor = grads[0] / num_counted
        grad_weight = grad_weight_t.mul_(factor).to(ctx.dtype).T
        return (grad_x * factor).to(grad_x.dtype), grad_weight, None, None, None


def _add_product(total: Tensor, x: Tensor, gradient: Tensor) -> None:
    """total [h, vocab] += xᵀ gradient, of [n, h] and [n, vocab], some rows at a time: so small is the product."""
    rows, width = total.shape
    # GPUs want few, large and aligned products, and their allocator has room for equal ones.
    parts = descending(rows, width, SLICE_NUMEL) if total.is_cpu else (slice(0, rows // 2), slice(rows // 2, rows))
    for part in parts:
        total[part] += linear(x[:, part].T, gradient.T)


def descending(num_rows: int, width: int, max_numel: int) -> Iterator[slice]:
    """Cuts rows of `width` into parts of at most `max_numel` elements, the first a row longer than the others.

    The space that a tensor leaves has no room for another of its very size: tensors are aligned, and glibc before 2.38
    looks for the size and the alignment together. Behind a longer one all take turns in its place.
    """
    num_parts = -(-(num_rows - 1) // max(1, max_numel // width - 1))
    usual = max(1, -(-(num_rows - 1) // max(1, num_parts)))
    for start, stop in itertools.pairwise([0, *range(usual + 1, num_rows, usual), num_rows]):
        yield slice(start, stop)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    softcap: float | None = None,
    first: int = 0,
    gather: Gather | None = None,
) -> Tensor:
    """See `kernels.linear_cross_entropy.linear_cross_entropy`."""
    is_training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    out: Tensor = _LinearCrossEntropy.apply(
        x.reshape(-1, x.shape[-1]), weight, labels.reshape(-1), SliceLoss(softcap, first, gather), is_training
    )
    return out
