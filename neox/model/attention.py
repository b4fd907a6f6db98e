"""Multi-head causal self-attention with rotary positions."""

from __future__ import annotations

from torch import Tensor, nn

from kernels.attention import attention
from kernels.rotary import rotary
from neox.config.derive import rotary_dims
from neox.config.schema import ModelConfig
from neox.model.cache import LayerCache
from neox.model.linear import Linear
from neox.model.positions import rotary_tables


class SelfAttention(nn.Module):
    """GPT-NeoX attention.

    The rows of `qkv` are ordered [head][q, k, v][head_dim], so a slice of whole heads is a slice of rows, and the
    number of heads is read off the weight: a tensor-parallel rank has fewer of both.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.head_dim = cfg.hidden_size // cfg.num_heads
        self.rotary_dims = rotary_dims(cfg)
        self.rotary_base = cfg.rotary_base
        self.qkv = Linear(cfg.hidden_size, 3 * cfg.hidden_size, cfg.bias)
        self.out = Linear(cfg.hidden_size, cfg.hidden_size, cfg.bias)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """[b, s, h] → [b, s, h]; with a cache, `x` continues the tokens in it."""
        batch, length, _ = x.shape
        num_heads = self.qkv.weight.shape[0] // (3 * self.head_dim)
        qkv = self.qkv(x).view(batch, length, num_heads, 3, self.head_dim)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # each [b, heads, s, head_dim]
        q, k = self._rotate(q, k, start=cache.length if cache is not None else 0)
        if cache is not None:
            k, v = cache.extend(k, v)
        y = attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, num_heads * self.head_dim))

    def _rotate(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        if self.rotary_dims == 0:
            return q, k
        cos, sin = rotary_tables(start, q.shape[2], self.rotary_dims, self.rotary_base, q.device)
        return rotary(q, cos, sin), rotary(k, cos, sin)
