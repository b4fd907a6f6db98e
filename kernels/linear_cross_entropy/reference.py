"""Cross entropy of a linear head as the definition reads: every logit at once."""

import torch
from torch import Tensor

from kernels.linear_cross_entropy import Gather
from kernels.precision import widen


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    softcap: float | None = None,
    first: int = 0,
    gather: Gather | None = None,
) -> Tensor:
    """See `kernels.linear_cross_entropy.linear_cross_entropy`; `gather` must be differentiable."""
    logits = widen(x @ weight.T)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    row = labels - first
    is_here = (row >= 0) & (row < len(weight))
    target = logits.gather(-1, torch.where(is_here, row, 0).unsqueeze(-1)).squeeze(-1)
    parts = torch.stack([logits.logsumexp(-1), torch.where(is_here, target, 0)])
    if gather is not None:
        every = gather(parts)
        parts = torch.stack([every[:, 0].logsumexp(0), every[:, 1].sum(0)])
    is_counted = labels >= 0
    return torch.where(is_counted, parts[0] - parts[1], 0).sum() / is_counted.sum().clamp(min=1)
