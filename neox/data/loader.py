"""Micro-batches of tokens and labels, in GPT-NeoX's order, from any sample onward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neox.data.indexed import IndexedReader
from neox.data.samples import load_order
from neox.data.split import PARTS, part_bounds


class TokenDataset:
    """Item i is an int64 array of seq_length + 1 tokens: sample i of a part of the documents, in shuffled order."""

    def __init__(
        self, prefix: str | Path, part: str, num_samples: int, seq_length: int, seed: int, split: Sequence[float]
    ) -> None:
        assert part in PARTS
        reader = IndexedReader(prefix)
        documents = part_bounds(split, len(reader), part)[part]
        self._order = load_order(prefix, part, reader.sizes, documents, num_samples, seq_length, seed)
        self._reader = reader
        self.seq_length = seq_length

    def __len__(self) -> int:
        """GPT-NeoX's length: one less than the samples there are."""
        return len(self._order) - 1

    def __getitem__(self, item: int) -> np.ndarray[Any, Any]:
        """Sample `item` [seq_length + 1] int64. The item len(self) exists too; those beyond wrap, as in GPT-NeoX."""
        order = self._order
        if item >= len(order):
            item %= max(len(self), 1)
        sample = int(order.shuffle_idx[item])
        (first, begin), (last, end) = order.sample_idx[sample].tolist(), order.sample_idx[sample + 1].tolist()
        documents = order.doc_idx[first : last + 1]
        sizes = self._reader.sizes[documents].astype(np.int64)
        starts = self._reader.pointers[documents] // self._reader.dtype.itemsize
        starts[0] += begin
        sizes[0] -= begin
        sizes[-1] = end + 1 - (begin if first == last else 0)
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1]) + np.repeat(starts - (ends - sizes), sizes)
        return self._reader.tokens[places].astype(np.int64)


class Batches:
    """One data-parallel rank's micro-batches; the step that begins at any sample is found at once.

    A step consumes micro_batch_size × grad_accum × dp consecutive items; its micro-batch k is the next
    micro_batch_size × dp of them, dealt to the ranks in contiguous slices.
    """

    def __init__(self, dataset: TokenDataset, micro_batch_size: int, grad_accum: int, dp: int, dp_index: int) -> None:
        assert 0 <= dp_index < dp
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
        """The step after `samples_consumed` samples: grad_accum pairs of tokens and labels, each [mbs, s] int64."""
        size = self._micro_batch_size
        first = samples_consumed + self._dp_index * size
        return [self._micro_batch(first + k * size * self._dp) for k in range(self._grad_accum)]

    def _micro_batch(self, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = np.stack([self._dataset[item] for item in range(first, first + self._micro_batch_size)])
        text = torch.from_numpy(rows)
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()
