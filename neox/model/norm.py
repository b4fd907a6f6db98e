"""Normalisation layers, chosen by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.layer_norm import layer_norm
from kernels.rms_norm import rms_norm
from neox.config.schema import ModelConfig


class LayerNorm(nn.Module):
    """Layer normalisation with weight and bias over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a weight over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


NORMS: dict[str, type[LayerNorm | RMSNorm]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
"""model.norm → layer."""


def build_norm(cfg: ModelConfig) -> LayerNorm | RMSNorm:
    """The configured norm over the residual stream."""
    return NORMS[cfg.norm](cfg.hidden_size, cfg.norm_eps)
