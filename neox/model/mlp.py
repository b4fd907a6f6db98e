"""Feed-forward layers, chosen by activation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bias_gelu import bias_gelu
from kernels.swiglu import swiglu
from neox.config.derive import ffn_size
from neox.config.schema import ModelConfig
from neox.model.linear import Linear


class GeluMLP(nn.Module):
    """down(gelu(up x)), GELU exact or tanh-approximated."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.is_exact = cfg.activation == "gelu"
        self.up = Linear(cfg.hidden_size, ffn_size(cfg), cfg.bias)
        self.down = Linear(ffn_size(cfg), cfg.hidden_size, cfg.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_exact:
            return self.down(F.gelu(self.up(x)))
        return self.down(bias_gelu(self.up(x, add_bias=False), self.up.bias))


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate = Linear(cfg.hidden_size, ffn_size(cfg), cfg.bias)
        self.up = Linear(cfg.hidden_size, ffn_size(cfg), cfg.bias)
        self.down = Linear(ffn_size(cfg), cfg.hidden_size, cfg.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate(x), self.up(x)))


MLPS: dict[str, type[GeluMLP | GatedMLP]] = {"gelu": GeluMLP, "gelu_tanh": GeluMLP, "swiglu": GatedMLP}
"""model.activation → layer."""


def build_mlp(cfg: ModelConfig) -> GeluMLP | GatedMLP:
    """The configured feed-forward layer."""
    return MLPS[cfg.activation](cfg)
