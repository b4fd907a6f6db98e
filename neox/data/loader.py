"""Micro-batches of tokens and labels, in GPT-NeoX's order, from any sample onward."""

from __future__ import annotations

import numpy as np
import torch

from neox.data.dataset import Dataset
from neox.data.whole import IGNORED


class Batches:
    """One data-parallel rank's micro-batches; the step that begins at any sample is found at once.

    A step consumes micro_batch_size × grad_accum × dp consecutive items; its micro-batch k is the next
    micro_batch_size × dp of them, dealt to the ranks in contiguous slices.
    """

    def __init__(
        self,
        dataset: Dataset,
        micro_batch_size: int,
        grad_accum: int,
        dp: int,
        dp_index: int,
        ignored_after: int | None = None,
    ) -> None:
        """ignored_after: id of a token after which the next does not count in the loss."""
        assert 0 <= dp_index < dp
        self._ignored_after = ignored_after
        self._dataset = dataset
        self._micro_batch_size = micro_batch_size
        self._grad_accum = grad_accum
        self._dp = dp
        self._dp_index = dp_index

    @property
    def global_batch_size(self) -> int:
        """Samples that a step consumes on all ranks together."""
        return self._micro_batch_size * self._grad_accum * self._dp

    def step(self, samples_consumed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The step after `samples_consumed` samples: grad_accum pairs of tokens and labels, each [mbs, s] int64.

        Labels below 0 do not count in the loss.
        """
        size = self._micro_batch_size
        first = samples_consumed + self._dp_index * size
        return [self._micro_batch(first + k * size * self._dp) for k in range(self._grad_accum)]

    def _micro_batch(self, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [self._dataset[item] for item in range(first, first + self._micro_batch_size)]
        text, labels = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        tokens, labels = text[:, :-1].contiguous(), labels[:, 1:].contiguous()
        if self._ignored_after is not None:
            labels[tokens == self._ignored_after] = IGNORED
        return tokens, labels
