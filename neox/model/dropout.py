"""Dropout that does not depend on the layout: its masks follow from sample, layer and place alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from kernels.dropout import derive, dropout, mix
from neox.model.context import Context


def sample_keys(seed: int, samples: range) -> Tensor:
    """[b] int64: the random keys of the samples with these numbers in the whole run."""
    return derive(mix(torch.tensor(seed)), samples)


class Dropout(nn.Module):
    """Sets elements to 0 with probability p while training, the same ones on any layout and in recomputation."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.name = ""
        """Logical name, by which layers differ; `build_piece` gives it."""
        self.stretch = 0
        """Which of the equal stretches of the sequence this rank holds, under sequence parallelism."""

    @property
    def is_active(self) -> bool:
        """Whether there is anything to drop."""
        return self.training and self.p > 0

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[b, s, h] → [b, s, h]; every rank that holds an element drops it, or none does."""
        if not self.is_active:
            return x
        first = self.stretch * x.shape[1]
        return dropout(x, self.p, derive(self._keys(context), range(first, first + x.shape[1])))

    def probability_rows(self, context: Context, heads: range, num_queries: int) -> Tensor | None:
        """Keys of the rows of attention's probabilities, [b, heads, queries] int64; None where nothing is dropped."""
        if not self.is_active:
            return None
        return derive(derive(self._keys(context), heads), range(num_queries))

    def _keys(self, context: Context) -> Tensor:
        if context.keys is None:
            raise ValueError(f"{self.name}: dropout in training needs the samples' keys in the context")
        digest = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:7], "little")
        return mix(context.keys + digest)
