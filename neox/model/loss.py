"""The training loss."""

from __future__ import annotations

from torch import Tensor

from kernels.cross_entropy import cross_entropy


def lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy, fp32 scalar in nats per token, of logits [b, s, vocab] at labels [b, s] int64."""
    return cross_entropy(logits, labels).mean()
