"""Biases on attention scores that depend on the distance of query and key: ALiBi and T5's buckets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from neox.config.schema import ModelConfig
from neox.config.shape import head_dim


def alibi_slopes(num_heads: int) -> list[float]:
    """Slope of each head (Press et al. 2022, arXiv 2108.12409): 2^(-8 i / n) for i = 1…n where n is a power of two.

    Otherwise those of the power of two below, and then every other one of the power above, as its authors' code does.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    return slopes + [2 ** (-4 * i / below) for i in range(1, 2 * (num_heads - below), 2)]


class AlibiBias(nn.Module):
    """-slope · distance, without parameters: attention is given the slopes."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.slopes = [cfg.alibi_scale * slope for slope in alibi_slopes(cfg.num_heads)]
        self._held: Tensor | None = None

    def forward(self, q: Tensor, k: Tensor, heads: range) -> Tensor:
        """[heads] fp32: the slopes of the query heads in `heads`."""
        if self._held is None or self._held.device != q.device:
            self._held = torch.tensor(self.slopes).to(q.device)  # once: a GPU is waited for at every copy from the host
        return self._held[heads.start : heads.stop]


class BucketBias(nn.Module):
    """A learned value per bucket of distances and head, times sqrt(head_dim) as in GPT-NeoX (T5: times 1).

    Distances below half the buckets have one each; the rest share, evenly in log(distance) up to t5_max_distance.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cfg.t5_buckets, cfg.num_heads))
        self.max_distance, self.scale = cfg.t5_max_distance, math.sqrt(head_dim(cfg))

    def forward(self, q: Tensor, k: Tensor, heads: range) -> Tensor:
        """[heads, queries, keys], the last of q [..., queries, head_dim] being the last of k's positions too.

        `weight` has the columns of the query heads in `heads` alone.
        """
        keys = torch.arange(k.shape[-2], device=k.device)
        distance = keys[k.shape[-2] - q.shape[-2] :, None] - keys
        rows = self.weight[buckets(distance, self.weight.shape[0], self.max_distance)]
        return self.scale * rows.permute(2, 0, 1)


def buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5's bucket of each distance, int64; negative distances, which causal attention never sees, are bucket 0."""
    exact = num_buckets // 2
    distance = distance.clamp(min=0)
    share = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact)
    far = (exact + (share * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return torch.where(distance < exact, distance, far)


BIASES: dict[str, type[AlibiBias | BucketBias]] = {"alibi": AlibiBias, "t5": BucketBias}
"""model.positions → bias on attention scores, as `kernels.attention.attention` takes it; the other kinds have none."""
