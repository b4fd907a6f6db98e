"""Feed-forward layers: with and without a gate."""

from __future__ import annotations

from torch import Tensor, nn

from kernels.bias_gelu import bias_gelu
from neox.config.derive import ffn_size
from neox.config.schema import ModelConfig
from neox.config.shape import is_gated
from neox.model.activation import ACTIVATIONS, GATES
from neox.model.linear import Linear


class PlainMLP(nn.Module):
    """down(activation(up x))."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.activation = cfg.activation
        self.up = Linear(cfg.hidden_size, ffn_size(cfg), cfg.bias)
        self.down = Linear(ffn_size(cfg), cfg.hidden_size, cfg.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "gelu_tanh":
            return self.down(bias_gelu(self.up(x, add_bias=False), self.up.bias))
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class GatedMLP(nn.Module):
    """down(activation(gate x) * up x)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.activation = GATES[cfg.activation]
        self.gate = Linear(cfg.hidden_size, ffn_size(cfg), cfg.bias)
        self.up = Linear(cfg.hidden_size, ffn_size(cfg), cfg.bias)
        self.down = Linear(ffn_size(cfg), cfg.hidden_size, cfg.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x), self.up(x)))


def build_mlp(cfg: ModelConfig) -> nn.Module:
    """The configured feed-forward layer."""
    return GatedMLP(cfg) if is_gated(cfg) else PlainMLP(cfg)
