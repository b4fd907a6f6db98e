"""Layer normalisation (Ba et al. 2016, https://arxiv.org/abs/1607.06450)."""

from torch import Tensor

from kernels.dispatch import find


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, statistics in fp32.

    Args:
        x: [..., hidden]; weight, bias: [hidden]; a bias of None is zero.
    """
    out: Tensor = find("layer_norm", x.device)(x, weight, bias, eps)
    return out
