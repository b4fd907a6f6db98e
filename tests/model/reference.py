"""GPT in plain PyTorch with no code of the package: explicit loops, one function, weights from a state dict."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from neox.config.schema import ModelConfig


def logits(weights: dict[str, Tensor], cfg: ModelConfig, tokens: Tensor) -> Tensor:
    """[b, s] → [b, s, vocab] from the equations of GPT-NeoX (and of Llama where the configuration says so)."""
    x = weights["embed.weight"][tokens]
    for i in range(cfg.num_layers):
        attended = attend(weights, cfg, f"layers.{i}.attn", norm(weights, cfg, f"layers.{i}.attn_norm", x))
        if not cfg.parallel_residual:
            x, attended = x + attended, torch.zeros_like(x)
        x = x + attended + feed_forward(weights, cfg, f"layers.{i}.mlp", norm(weights, cfg, f"layers.{i}.mlp_norm", x))
    head = weights["embed.weight" if cfg.tie_embeddings else "head.weight"]
    return norm(weights, cfg, "final_norm", x) @ head.T


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def norm(weights: dict[str, Tensor], cfg: ModelConfig, name: str, x: Tensor) -> Tensor:
    if cfg.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + cfg.norm_eps).sqrt() * weights[f"{name}.weight"]
    return x + weights[f"{name}.bias"] if cfg.norm == "layernorm" else x


def feed_forward(weights: dict[str, Tensor], cfg: ModelConfig, name: str, x: Tensor) -> Tensor:
    up = linear(weights, f"{name}.up", x)
    if cfg.activation == "swiglu":
        inner = F.silu(linear(weights, f"{name}.gate", x)) * up
    elif cfg.activation == "gelu":
        inner = 0.5 * up * (1 + torch.erf(up / math.sqrt(2)))
    else:
        inner = 0.5 * up * (1 + torch.tanh(0.79788456 * up * (1 + 0.044715 * up * up)))
    return linear(weights, f"{name}.down", inner)


def attend(weights: dict[str, Tensor], cfg: ModelConfig, name: str, x: Tensor) -> Tensor:
    _, length, hidden = x.shape
    size = hidden // cfg.num_heads
    fused = linear(weights, f"{name}.qkv", x)
    heads = []
    for head in range(cfg.num_heads):
        q, k, v = (fused[..., (3 * head + part) * size : (3 * head + part + 1) * size] for part in range(3))
        q, k = rotate(q, cfg), rotate(k, cfg)
        scores = torch.einsum("bqd,bkd->bqk", q, k) / math.sqrt(size)
        later = torch.arange(length)[None, :] > torch.arange(length)[:, None]
        heads.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ v)
    return linear(weights, f"{name}.out", torch.cat(heads, -1))


def rotate(x: Tensor, cfg: ModelConfig) -> Tensor:
    """Pair (i, i + r/2) of the first r dimensions as a complex number, times exp(i · position · base^(-2i/r))."""
    r = int(x.shape[-1] * cfg.rotary_pct)
    if r == 0:
        return x
    speeds = torch.tensor([cfg.rotary_base ** (-2 * i / r) for i in range(r // 2)])
    turns = torch.polar(torch.ones(x.shape[1], r // 2), torch.arange(x.shape[1])[:, None] * speeds)
    pairs = torch.complex(x[..., : r // 2], x[..., r // 2 : r]) * turns
    return torch.cat([pairs.real, pairs.imag, x[..., r:]], -1)
