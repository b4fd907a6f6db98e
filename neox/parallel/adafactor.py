"""Adafactor (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235, algorithms 4 and 5) without a first moment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from neox.parallel.fragments import Fragment, Ranks
from neox.parallel.pieces import Piece

EPS_SQUARE, EPS_SCALE, CLIP, DECAY = 1e-30, 1e-3, 1.0, -0.8
"""The paper's ε₁, ε₂, d, and the exponent of 1 − tᶜ, the decay rate of the second moment at step t."""


class Adafactor(torch.optim.Optimizer):
    """Second moments of matrices as a factor per row and one per column, steps relative to the size of the tensor.

    Means over rows, columns and whole tensors are taken over all their parts and shards, so the step is the same at
    every layout. The factors are small and every data-parallel rank keeps them all.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    def place(self, fragments: dict[str, Fragment], ranks: Ranks) -> None:
        """Says where the tensors of each group (its `names`) lie, and makes their factors."""
        self._ranks, self._fragments = ranks, fragments
        self._factors: dict[str, list[Tensor]] = {}
        for group in self.param_groups:
            for name in group["names"]:
                shape = fragments[name].shape
                sizes = shape if len(shape) == 2 else (math.prod(shape),)
                self._factors[name] = [torch.zeros(size, device=group["params"][0].device) for size in sizes]

    def pieces(self) -> Iterator[Piece]:
        """The factors, each whole but for tensor parallelism."""
        tensor = self._ranks.tensor
        for name, factors in self._factors.items():
            fragment = self._fragments[name]
            kinds = ("exp_avg_sq_row", "exp_avg_sq_col") if len(factors) == 2 else ("exp_avg_sq",)
            for axis, (kind, factor) in enumerate(zip(kinds, factors, strict=True)):
                is_sharded = fragment.dim == axis and tensor.size > 1
                num_shards, index = (tensor.size, tensor.index) if is_sharded else (1, 0)
                shape = (factor.numel() * num_shards,)
                dim = 0 if is_sharded else None
                yield Piece(kind, name, shape, dim, index, num_shards, 0, factor.numel(), factor)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; every rank calls it with the same groups."""
        for group in self.param_groups:
            (flat,) = group["params"]
            self.state[flat]["step"] += 1
            fragments = [self._fragments[name] for name in group["names"]]
            sizes = self._advance(fragments, flat, flat.grad, 1 - float(self.state[flat]["step"]) ** DECAY)
            directions = self._directions(fragments, flat.grad)
            norms = self._root_mean_squares(fragments, directions)
            for fragment, size, direction, norm in zip(fragments, sizes, directions, norms, strict=True):
                rate = group["lr"] * max(EPS_SCALE, size)
                fragment.of(flat).mul_(1 - rate * group["weight_decay"])
                fragment.of(flat).sub_(direction, alpha=rate / max(1.0, norm / CLIP))

    def _advance(self, fragments: list[Fragment], flat: Tensor, gradient: Tensor, beta2: float) -> list[float]:
        """Takes the gradients into the factors; returns the root mean square of each tensor's weights."""
        sums = [_sums(fragment.spread(gradient).square_()) for fragment in fragments]
        self._ranks.sum_parts([part for parts in sums for part in parts])
        # A sum along the dimension that is dealt to the tensor-parallel ranks is not whole yet.
        pairs = zip(fragments, sums, strict=True)
        self._ranks.sum_shards(
            [parts[1 - item.dim] for item, parts in pairs if item.dim is not None and len(parts) == 2]
        )
        for fragment, parts in zip(fragments, sums, strict=True):
            sizes = fragment.global_shape(self._ranks.tensor.size)
            counts = sizes[::-1] if len(sizes) == 2 else (1,)
            for factor, part, count in zip(self._factors[fragment.name], parts, counts, strict=True):
                factor.mul_(beta2).add_(part / count + EPS_SQUARE, alpha=1 - beta2)
        return self._root_mean_squares(fragments, [fragment.of(flat) for fragment in fragments])

    def _directions(self, fragments: list[Fragment], gradient: Tensor) -> list[Tensor]:
        """The held part of each gradient, divided by the root of its second moment."""
        factors = [self._factors[fragment.name] for fragment in fragments]
        rows = [rows.sum() for rows, *_ in factors]
        self._ranks.sum_shards([total for item, total in zip(fragments, rows, strict=True) if item.dim == 0])
        out = []
        for fragment, (first, *second), total in zip(fragments, factors, rows, strict=True):
            roots = first.rsqrt()
            if second:
                mean = total / fragment.global_shape(self._ranks.tensor.size)[0]
                roots = (first / mean).rsqrt().unsqueeze(1) * second[0].rsqrt()
            out.append(fragment.of(gradient) * fragment.cut(roots))
        return out

    def _root_mean_squares(self, fragments: list[Fragment], held: list[Tensor]) -> list[float]:
        """Of whole tensors, from the parts that the ranks hold."""
        sums = [part.square().sum() for part in held]
        self._ranks.sum_parts(sums)
        self._ranks.sum_shards([total for item, total in zip(fragments, sums, strict=True) if item.dim is not None])
        counts = [math.prod(item.global_shape(self._ranks.tensor.size)) for item in fragments]
        return [math.sqrt(total / n) for total, n in zip(torch.stack(sums).tolist(), counts, strict=True)]


def _sums(square: Tensor) -> list[Tensor]:
    """Over the columns and over the rows of a matrix; a vector as it is."""
    return [square.sum(1), square.sum(0)] if square.dim() == 2 else [square]
