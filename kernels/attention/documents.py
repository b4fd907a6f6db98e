"""Documents that are packed into one sample, and what attention needs to keep them apart."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Documents:
    """Which document each token of a micro-batch belongs to; what follows from it is made once for all layers."""

    def __init__(self, numbers: Tensor) -> None:
        """numbers [batch, seq] int64, never falling along a sample: tokens of one number see each other."""
        self.numbers = numbers
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def mask(self, num_queries: int, window: int | None) -> Tensor:
        """[batch, 1, queries, seq] bool, true where one of the last `num_queries` tokens may look: at its own document,
        up to itself, in its window."""
        if (num_queries, window) not in self._masks:
            length, device = self.numbers.shape[1], self.numbers.device
            same = self.numbers[:, None, length - num_queries :, None] == self.numbers[:, None, None, :]
            self._masks[num_queries, window] = same & visible(num_queries, length, window, device)
        return self._masks[num_queries, window]

    def to(self, device: torch.device) -> Documents:
        """The same on `device`; for a GPU the bounds are found first, since finding them there would wait for it."""
        moved = Documents(self.numbers.to(device))
        if device.type != "cpu":
            moved.bounds, moved.longest = self.bounds.to(device), self.longest
        return moved

    @cached_property
    def bounds(self) -> Tensor:
        """[documents + 1] int32: where each begins in the samples laid end to end, and the end of the last."""
        is_first = torch.ones_like(self.numbers, dtype=torch.bool)  # a sample begins a document too
        is_first[:, 1:] = self.numbers[:, 1:] != self.numbers[:, :-1]
        starts = is_first.flatten().nonzero().flatten()
        return torch.cat([starts, starts.new_tensor([self.numbers.numel()])]).int()

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(self.bounds.diff().max())


def visible(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys] bool, true where a query may look; the last query sees the last key."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    last = num_keys - num_queries
    mask = ones.tril(last)
    return mask if window is None else mask & ones.triu(last - window + 1)
