"""Cross entropy of logits whose vocabulary is dealt to the tensor-parallel ranks."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from neox.model.loss import lm_loss, mean_of_counted
from neox.parallel.collectives import reduce_from_group
from neox.parallel.groups import TensorGroup


def vocab_parallel_lm_loss(logits: Tensor, labels: Tensor, tensor: TensorGroup) -> Tensor:
    """`neox.model.loss.lm_loss` of the whole vocabulary, from this rank's slice of it.

    Args:
        logits: [b, s, vocab / tp], the tensor.index-th slice; labels: [b, s], ids of the whole vocabulary.

    Returns:
        fp32 scalar, equal on all ranks.
    """
    if tensor.group is None:
        return lm_loss(logits, labels)
    logits = logits.float()
    largest = logits.detach().amax(-1)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=tensor.group)
    logits = logits - largest.unsqueeze(-1)
    local = labels - tensor.index * logits.shape[-1]
    is_elsewhere = (local < 0) | (local >= logits.shape[-1])
    target = logits.gather(-1, local.masked_fill(is_elsewhere, 0).unsqueeze(-1)).squeeze(-1)
    target = reduce_from_group(target.masked_fill(is_elsewhere, 0), tensor)
    total = reduce_from_group(logits.exp().sum(-1), tensor)
    return mean_of_counted(total.log() - target, labels)
