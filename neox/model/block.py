"""The blocks of the residual stream, chosen by kind."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from neox.config.schema import ModelConfig
from neox.model.attention import SelfAttention
from neox.model.cache import LayerCache
from neox.model.context import PLAIN, Context
from neox.model.dropout import Dropout
from neox.model.mlp import build_mlp
from neox.model.norm import build_norm


class Block(nn.Module):
    """Attention and MLP around a residual stream, side by side (GPT-J, GPT-NeoX) or one after the other."""

    def __init__(self, cfg: ModelConfig, attn: SelfAttention) -> None:
        super().__init__()
        self.is_parallel = cfg.parallel_residual
        self.attn_norm = build_norm(cfg)
        self.attn = attn
        self.attn_post_norm = build_norm(cfg) if cfg.sandwich_norm else nn.Identity()
        self.attn_dropout = Dropout(cfg.hidden_dropout)
        self.mlp_norm = None if cfg.shared_norm else build_norm(cfg)
        self.mlp = build_mlp(cfg)
        self.mlp_post_norm = build_norm(cfg) if cfg.sandwich_norm else nn.Identity()
        self.mlp_dropout = Dropout(cfg.hidden_dropout)

    def forward(self, x: Tensor, context: Context = PLAIN, cache: LayerCache | None = None) -> Tensor:
        """[b, s, h] → [b, s, h]."""
        normed = self.attn_norm(x)
        attended = self.attn_dropout(self.attn_post_norm(self.attn(normed, context, cache)), context)
        y = x if self.is_parallel else x + attended
        mlp_in = normed if self.mlp_norm is None else self.mlp_norm(y)
        out: Tensor = y + self.mlp_dropout(self.mlp_post_norm(self.mlp(mlp_in)), context)
        return out + attended if self.is_parallel else out


BLOCKS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "global": lambda cfg: Block(cfg, SelfAttention(cfg)),
    "window": lambda cfg: Block(cfg, SelfAttention(cfg, cfg.sliding_window)),
}
"""Kind in model.layer_pattern → block [b, s, h] → [b, s, h], called with the micro-batch's context, and with the
layer's cache when generating."""
