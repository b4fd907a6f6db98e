"""The transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from neox.config.schema import ModelConfig
from neox.model.attention import SelfAttention
from neox.model.cache import LayerCache
from neox.model.mlp import build_mlp
from neox.model.norm import build_norm


class Block(nn.Module):
    """Attention and MLP around a residual stream, side by side (GPT-J, GPT-NeoX) or one after the other."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.is_parallel = cfg.parallel_residual
        self.attn_norm = build_norm(cfg)
        self.attn = SelfAttention(cfg)
        self.mlp_norm = build_norm(cfg)
        self.mlp = build_mlp(cfg)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """[b, s, h] → [b, s, h]."""
        attended = self.attn(self.attn_norm(x), cache)
        if self.is_parallel:
            return x + attended + self.mlp(self.mlp_norm(x))
        x = x + attended
        return x + self.mlp(self.mlp_norm(x))
