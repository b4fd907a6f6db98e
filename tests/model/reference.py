"""GPT in plain PyTorch with no code of the package: explicit loops, one function, weights from a state dict."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neox.config.schema import ModelConfig

INNER = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),
    "relu": lambda x: x * (x > 0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "mish": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    "softsign": lambda x: x / (1 + x.abs()),
}
GATE = {
    "swiglu": INNER["silu"],
    "geglu": INNER["gelu"],
    "geglu_tanh": INNER["gelu_tanh"],
    "reglu": INNER["relu"],
    "glu": lambda x: 1 / (1 + torch.exp(-x)),
    "bilinear": lambda x: x,
}


def logits(weights: dict[str, Tensor], cfg: ModelConfig, tokens: Tensor) -> Tensor:
    """[b, s] → [b, s, vocab] from the equations of GPT-NeoX, and of other families where the configuration says so."""
    x = embed(weights, cfg, tokens)
    for i in range(cfg.num_layers):
        first = norm(weights, cfg, f"layers.{i}.attn_norm", x)
        attended = attend(weights, cfg, i, first)
        if cfg.sandwich_norm:
            attended = norm(weights, cfg, f"layers.{i}.attn_post_norm", attended)
        if not cfg.parallel_residual:
            x, attended = x + attended, torch.zeros_like(x)
        second = first if cfg.shared_norm else norm(weights, cfg, f"layers.{i}.mlp_norm", x)
        fed = feed_forward(weights, cfg, f"layers.{i}.mlp", second)
        if cfg.sandwich_norm:
            fed = norm(weights, cfg, f"layers.{i}.mlp_post_norm", fed)
        x = x + attended + fed
    head = weights["embed.weight" if cfg.tie_embeddings else "head.weight"]
    return capped(norm(weights, cfg, "final_norm", x) @ head.T, cfg.logit_softcap)


def embed(weights: dict[str, Tensor], cfg: ModelConfig, tokens: Tensor) -> Tensor:
    x, (_, length) = weights["embed.weight"][tokens], tokens.shape
    if cfg.positions == "learned":
        return x + torch.stack([weights["positions.weight"][cfg.position_offset + i] for i in range(length)])
    if cfg.positions == "sinusoidal":
        half = cfg.hidden_size // 2
        angles = [[i / cfg.rotary_base ** (j / half) for j in range(half)] for i in range(length)]
        table = [[*map(math.sin, row), *map(math.cos, row)] for row in angles]
        return x + torch.tensor(table)
    return x


def capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else torch.tanh(x / cap) * cap


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def norm(weights: dict[str, Tensor], cfg: ModelConfig, name: str, x: Tensor) -> Tensor:
    if cfg.norm == "scalenorm":
        return weights[f"{name}.weight"] * x / x.pow(2).sum(-1, keepdim=True).sqrt()
    if cfg.norm != "rmsnorm":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + cfg.norm_eps).sqrt()
    if f"{name}.weight" in weights:
        x = x * weights[f"{name}.weight"]
    return x + weights[f"{name}.bias"] if f"{name}.bias" in weights else x


def feed_forward(weights: dict[str, Tensor], cfg: ModelConfig, name: str, x: Tensor) -> Tensor:
    up = linear(weights, f"{name}.up", x)
    if cfg.activation in GATE:
        inner = GATE[cfg.activation](linear(weights, f"{name}.gate", x)) * up
    else:
        inner = INNER[cfg.activation](up)
    return linear(weights, f"{name}.down", inner)


def attend(weights: dict[str, Tensor], cfg: ModelConfig, layer: int, x: Tensor) -> Tensor:
    """One query head at a time; the fused rows are [kv head][its queries, k, v][head_dim]."""
    name, length = f"layers.{layer}.attn", x.shape[1]
    size = cfg.head_dim or cfg.hidden_size // cfg.num_heads
    group = cfg.num_heads // (cfg.num_kv_heads or cfg.num_heads)
    fused = [linear(weights, f"{name}.{part}", x) for part in ("qkv", "q", "kv") if f"{name}.{part}.weight" in weights]
    blocks = torch.cat(fused, -1).split(size, -1)  # of a single kv head, the queries are a tensor of their own
    ahead = torch.arange(length)[:, None] - torch.arange(length)[None, :]  # of the query, over the key
    hidden = ahead < 0
    if cfg.layer_pattern[layer % len(cfg.layer_pattern)] == "window":
        assert cfg.sliding_window is not None
        hidden = hidden | (ahead >= cfg.sliding_window)
    heads = []
    for head in range(cfg.num_heads):
        first = (head // group) * (group + 2)
        q, k, v = blocks[first + head % group], blocks[first + group], blocks[first + group + 1]
        if cfg.qk_norm:
            q, k = norm(weights, cfg, f"{name}.q_norm", q), norm(weights, cfg, f"{name}.k_norm", k)
        q, k = rotate(q, cfg), rotate(k, cfg)
        scores = capped(torch.einsum("bqd,bkd->bqk", q, k) / math.sqrt(size), cfg.attn_softcap)
        scores = scores + relative(weights, cfg, name, head, ahead, size)
        heads.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v)
    return linear(weights, f"{name}.out", torch.cat(heads, -1))


def relative(weights: dict[str, Tensor], cfg: ModelConfig, name: str, head: int, ahead: Tensor, size: int) -> Tensor:
    """What the distance adds to a head's scores."""
    if cfg.positions == "alibi":
        assert cfg.num_heads == 6  # the paper's rule for four heads, then every other slope of eight
        slope = [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8][head]
        return -cfg.alibi_scale * slope * ahead
    if cfg.positions == "t5":
        table, half = weights[f"{name}.position_bias.weight"][:, head], cfg.t5_buckets // 2

        def bucket(distance: int) -> int:
            if distance < half:
                return max(distance, 0)
            far = half + int(math.log(distance / half) / math.log(cfg.t5_max_distance / half) * half)
            return min(far, cfg.t5_buckets - 1)

        rows = [[bucket(distance) for distance in row] for row in ahead.tolist()]
        return table[torch.tensor(rows)] * math.sqrt(size)
    return torch.zeros(())


def rotate(x: Tensor, cfg: ModelConfig) -> Tensor:
    """Pair (i, i + r/2) of the first r dimensions as a complex number, times exp(i · position · base^(-2i/r))."""
    r = int(x.shape[-1] * cfg.rotary_pct)
    if r == 0 or cfg.positions != "rotary":
        return x
    base, divisor = cfg.rotary_base, 1.0
    if cfg.rotary_scaling == "ntk":
        base *= cfg.rotary_factor ** (r / (r - 2))
    elif cfg.rotary_scaling == "linear":
        divisor = cfg.rotary_factor
    speeds = torch.tensor([base ** (-2 * i / r) / divisor for i in range(r // 2)])
    turns = torch.polar(torch.ones(x.shape[1], r // 2), torch.arange(x.shape[1])[:, None] * speeds)
    pairs = torch.complex(x[..., : r // 2], x[..., r // 2 : r]) * turns
    return torch.cat([pairs.real, pairs.imag, x[..., r:]], -1)
