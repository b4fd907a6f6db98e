"""The training loss at the end of the last stage, its vocabulary dealt to the tensor-parallel ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from kernels.linear_cross_entropy import linear_cross_entropy
from neox.parallel.collectives import enter_region
from neox.parallel.groups import TensorGroup


def weighted_loss(
    factors: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], tensor: TensorGroup, softcap: float | None = None
) -> Tensor:
    """`head_loss` of the labels, times the weight, which are the two `targets`."""
    labels, weight = targets
    return weight * head_loss(factors, labels, tensor, softcap)


def head_loss(
    factors: tuple[Tensor, Tensor], labels: Tensor, tensor: TensorGroup, softcap: float | None = None
) -> Tensor:
    """Mean cross entropy, in nats per token that counts, of the head's logits, which never exist as a whole.

    Args:
        factors: of the logits: the head's input [b, s, h], equal on all ranks of the group, or this rank's stretch of
            it, and this rank's rows of the weight, [vocab / tp, h]. labels: [b, s], ids of the whole vocabulary;
            negative where it does not count.
        softcap: see ModelConfig.logit_softcap.

    Returns:
        fp32 scalar, equal on all ranks.
    """
    x, weight = factors
    if tensor.group is None:
        return linear_cross_entropy(x, weight, labels, softcap)

    def gather(part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(tensor.size)]
        dist.all_gather(parts, part, group=tensor.group)
        return torch.stack(parts)

    return linear_cross_entropy(enter_region(x, tensor), weight, labels, softcap, tensor.index * len(weight), gather)
