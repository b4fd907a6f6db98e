"""Normalisation layers, chosen by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.layer_norm import layer_norm
from kernels.rms_norm import rms_norm
from neox.config.schema import ModelConfig


class LayerNorm(nn.Module):
    """Layer normalisation with a weight, and a bias where `norm_bias` asks for one, over the last dimension."""

    def __init__(self, size: int, cfg: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if cfg.norm_bias else None
        self.eps = cfg.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a weight over the last dimension."""

    def __init__(self, size: int, cfg: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = cfg.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class ScaleNorm(nn.Module):
    """g x / |x| with one learned g that starts at 1 (Nguyen and Salazar 2019, as GPT-NeoX has it)."""

    def __init__(self, size: int, cfg: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.eps = cfg.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp(min=self.eps)
        return (x / length * self.weight).to(x.dtype)


class NonParametricLayerNorm(nn.Module):
    """Layer normalisation without weights (OLMo, GPT-NeoX's non_parametric_layernorm)."""

    def __init__(self, size: int, cfg: ModelConfig) -> None:
        super().__init__()
        self.size, self.eps = size, cfg.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.size,), eps=self.eps)


NORMS: dict[str, type[nn.Module]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
    "scalenorm": ScaleNorm,
    "non_parametric_layernorm": NonParametricLayerNorm,
}
"""model.norm → layer, made from the size it normalises and the configuration."""


def build_norm(cfg: ModelConfig, size: int | None = None) -> nn.Module:
    """The configured norm, over the residual stream unless a `size` is given."""
    return NORMS[cfg.norm](cfg.hidden_size if size is None else size, cfg)
