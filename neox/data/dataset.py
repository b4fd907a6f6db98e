"""Samples by number: the tokens of the documents that the index maps name, from one token file or a blend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from neox.data.blend import BLOCK
from neox.data.indexed import IndexedReader
from neox.data.samples import SampleOrder

Array = np.ndarray[Any, Any]


class Dataset(Protocol):
    """Item i is an int64 array of seq_length + 1 tokens; items beyond the last wrap, as in GPT-NeoX."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> Array: ...


class TokenDataset:
    """Samples of one token file's documents, in shuffled order."""

    def __init__(self, reader: IndexedReader, order: SampleOrder) -> None:
        self._reader = reader
        self._order = order

    def __len__(self) -> int:
        """GPT-NeoX's length: one less than the samples there are."""
        return len(self._order) - 1

    def __getitem__(self, item: int) -> Array:
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


class BlendedDataset:
    """Samples of several token files: `dataset_index` [n] uint8 says which gives each, its next one in order."""

    def __init__(self, datasets: Sequence[TokenDataset], dataset_index: Array, counts: Array) -> None:
        """counts [n / BLOCK, files]: samples that each file gave before every BLOCK-th."""
        self._datasets = datasets
        self._index = dataset_index
        self._counts = counts

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, item: int) -> Array:
        """Sample `item` [seq_length + 1] int64."""
        item %= len(self)
        number = int(self._index[item])
        block = item // BLOCK
        before = int(np.count_nonzero(self._index[block * BLOCK : item] == number))
        return self._datasets[number][int(self._counts[block, number]) + before]
