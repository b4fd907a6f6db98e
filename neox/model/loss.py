"""The training loss."""

from __future__ import annotations

from torch import Tensor

from kernels.cross_entropy import cross_entropy


def lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy, fp32 scalar in nats per token, of logits [b, s, vocab] at labels [b, s] int64.

    Labels below 0 do not count; the mean of nothing is 0.
    """
    return mean_of_counted(cross_entropy(logits, labels.clamp(min=0)), labels)


def mean_of_counted(losses: Tensor, labels: Tensor) -> Tensor:
    """Mean of `losses` where `labels` are not negative, 0 where all are."""
    is_counted = labels >= 0
    return losses.masked_fill(~is_counted, 0).sum() / is_counted.sum().clamp(min=1)
