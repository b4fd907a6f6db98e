"""Root-mean-square normalisation (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

from torch import Tensor

from kernels.dispatch import find


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension, statistics in fp32.

    Args:
        x: [..., hidden]; weight: [hidden].
    """
    out: Tensor = find("rms_norm", x.device)(x, weight, eps)
    return out
