"""Muon: the blocks' matrices step by their momentum made orthogonal, everything else by AdamW.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, https://arxiv.org/abs/2502.16982.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from neox.parallel.fragments import Fragment, Ranks

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
EPS = 1e-7
"""Jordan's, as in torch.optim.Muon."""

MATRICES = r"layers\.\d+\.(attn\.(qkv|q|kv|out)|mlp\.(up|gate|down))\.weight"


def is_matrix(name: str) -> bool:
    """Whether the tensor with this logical name maps activations to activations; embeddings and the head do not."""
    return re.fullmatch(MATRICES, name) is not None


class Muon(torch.optim.Optimizer):
    """Over the flat partitions of two groups, the matrices (`is_matrix` is true in it) and the rest.

    Each matrix is put together from all its parts and shards before it is made orthogonal, so the step is the same at
    every layout. A rank works on the matrices of which it holds a part; those at the borders of partitions are worked
    on by all that do, and only they are sent over the data-parallel ranks.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, scale: str, **defaults: Any) -> None:
        """scale: `match_rms_adamw` or `original`, see `rate_of`. defaults: momentum, nesterov, betas, eps."""
        super().__init__(groups, {"lr": lr, **defaults})
        self._scale = scale

    def place(self, fragments: dict[str, Fragment], ranks: Ranks, decayed: set[str], dtype: torch.dtype) -> None:
        """Says where the tensors of both groups lie, which are decayed, and in what type to iterate."""
        self._ranks, self._dtype = ranks, dtype
        self._matrices = [fragment for name, fragment in fragments.items() if is_matrix(name)]
        self._decayed = [item for name, item in fragments.items() if not is_matrix(name) and name in decayed]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; every rank calls it with the same groups."""
        for group in self.param_groups:
            (flat,) = group["params"]
            (self._step_matrices if group["is_matrix"] else self._step_rest)(group, flat, flat.grad)

    def _step_matrices(self, group: dict[str, Any], flat: Tensor, gradient: Tensor) -> None:
        momentum = self.state[flat]["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        flat.mul_(1 - group["lr"] * group["weight_decay"])
        for fragment in self._matrices:
            matrix = self._whole(fragment, update)
            if matrix is not None:
                rate = group["lr"] * rate_of(matrix.shape, self._scale)
                turned = self._ranks.own(orthogonal(matrix.to(self._dtype)), fragment.dim)
                fragment.of(flat).sub_(fragment.cut(turned).to(flat.dtype), alpha=rate)

    def _whole(self, fragment: Fragment, update: Tensor) -> Tensor | None:
        """The whole matrix; None where this rank holds nothing of it. If it is split, every rank must call."""
        if fragment.numel == 0 and not fragment.is_split:
            return None
        shard = fragment.spread(update)
        if fragment.is_split:
            self._ranks.sum_parts([shard])
        return self._ranks.join(shard, fragment.dim) if fragment.numel else None

    def _step_rest(self, group: dict[str, Any], flat: Tensor, gradient: Tensor) -> None:
        for fragment in self._decayed:
            fragment.of(flat).mul_(1 - group["lr"] * group["weight_decay"])
        state, (beta1, beta2) = self.state[flat], group["betas"]
        moments = [state["exp_avg"]], [state["exp_avg_sq"]]
        options = {"fused": True, "amsgrad": False, "maximize": False, "weight_decay": 0.0, "eps": group["eps"]}
        adamw([flat], [gradient], *moments, [], [state["step"]], lr=group["lr"], beta1=beta1, beta2=beta2, **options)


def orthogonal(matrix: Tensor) -> Tensor:
    """U S V^T with all of S between about 0.7 and 1.2, from matrix = U Σ V^T: Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=EPS)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


def rate_of(shape: torch.Size, scale: str) -> float:
    """What the rate is multiplied by for a matrix [rows, columns].

    match_rms_adamw: 0.2 · √max(rows, columns), so that a step is as large as AdamW's (Liu et al., section 2.2);
    original: √max(1, rows / columns) (Jordan).
    """
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if scale == "match_rms_adamw" else math.sqrt(max(1.0, rows / columns))
