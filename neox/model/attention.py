"""Causal self-attention: grouped key-value heads, windows, soft caps, and the positions that act inside it."""

from __future__ import annotations

from torch import Tensor, nn

from kernels.attention import attention
from kernels.rotary import rotary
from neox.config.derive import rotary_dims
from neox.config.schema import ModelConfig
from neox.config.shape import has_attention_bias, head_dim, is_multi_query, num_kv_heads
from neox.model.cache import LayerCache
from neox.model.context import PLAIN, Context
from neox.model.dropout import Dropout
from neox.model.linear import Linear
from neox.model.norm import build_norm
from neox.model.positions import Rotary
from neox.model.relative import BIASES


class SelfAttention(nn.Module):
    """Attention of all heads, or under tensor parallelism of the query heads in `heads`.

    The rows of `qkv` are ordered [kv head][its queries, k, v][head_dim] (GPT-NeoX's order where every query has its
    own kv head), so a slice of whole kv heads is a slice of rows, and their number is read off the weight. A single
    kv head cannot be dealt: multi-query attention has the projections `q` and `kv`, and every rank the whole `kv`.
    """

    def __init__(self, cfg: ModelConfig, window: int | None = None) -> None:
        """`window`: tokens that a query sees, itself included; None: all earlier ones."""
        super().__init__()
        self.head_dim, self.group = head_dim(cfg), cfg.num_heads // num_kv_heads(cfg)
        self.heads = range(cfg.num_heads)
        self.window, self.softcap = window, cfg.attn_softcap
        self.rotary = Rotary(cfg) if rotary_dims(cfg) else None
        self.is_multi_query = is_multi_query(cfg)
        hidden, queries, keys = cfg.hidden_size, cfg.num_heads * self.head_dim, num_kv_heads(cfg) * self.head_dim
        if self.is_multi_query:
            self.q = Linear(hidden, queries, has_attention_bias(cfg))
            self.kv = Linear(hidden, 2 * keys, has_attention_bias(cfg))
        else:
            self.qkv = Linear(hidden, queries + 2 * keys, has_attention_bias(cfg))
        self.out = Linear(queries, hidden, has_attention_bias(cfg))
        self.q_norm = build_norm(cfg, self.head_dim) if cfg.qk_norm else None
        self.k_norm = build_norm(cfg, self.head_dim) if cfg.qk_norm else None
        self.dropout = Dropout(cfg.attention_dropout)
        self.position_bias = BIASES[cfg.positions](cfg) if cfg.positions in BIASES else None

    def forward(self, x: Tensor, context: Context = PLAIN, cache: LayerCache | None = None) -> Tensor:
        """[b, s, h] → [b, s, h]; with a cache, `x` continues the tokens in it."""
        return self.out(self.attend(*self._project(x), context, cache))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context = PLAIN, cache: LayerCache | None = None
    ) -> Tensor:
        """What comes between the projections: [b, heads, s, head_dim] each → [b, s, heads · head_dim]."""
        if self.rotary is not None:
            start = cache.length if cache is not None else 0
            cos, sin = self.rotary.tables(start, q.shape[2], q.device, context.positions)
            q, k = rotary(q, cos, sin), rotary(k, cos, sin)
            v = v.contiguous()  # as a view it would keep the whole projection until backward
        if cache is not None:
            k, v = cache.extend(k, v)
        rows = self.dropout.probability_rows(context, self.heads, q.shape[2])
        bias = None if self.position_bias is None else self.position_bias(q, k, self.heads)
        y = attention(q, k, v, bias, self.window, self.softcap, context.documents, self.dropout.p, rows)
        return y.transpose(1, 2).flatten(2)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [b, heads, s, head_dim], k and v [b, kv heads, s, head_dim], normalised where asked."""
        if self.is_multi_query:
            q = self.q(x).unflatten(-1, (-1, self.head_dim))
            k, v = self.kv(x).unflatten(-1, (2, self.head_dim)).split(1, dim=2)
        else:
            qkv = self.qkv(x).unflatten(-1, (-1, self.group + 2, self.head_dim))
            parts = qkv.split((self.group, 1, 1), dim=3)
            q, k, v = (part.flatten(2, 3) for part in parts)  # [b, s, heads, head_dim]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
