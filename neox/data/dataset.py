"""Samples by number: the tokens of the documents that the index maps name, from one token file or a blend."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from neox.data.blend import BLOCK
from neox.data.indexed import IndexedReader
from neox.data.samples import SampleOrder
from neox.data.whole import IGNORED

Array = np.ndarray[Any, Any]


class Dataset(Protocol):
    """Item i is the text and the labels of a sample, each [seq_length + 1] int64, not shifted; the labels are the text
    itself where there are no label files. Items beyond the last wrap, as in GPT-NeoX.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> tuple[Array, Array]: ...


class TokenDataset:
    """Samples of one token file's documents, in shuffled order."""

    def __init__(
        self, reader: IndexedReader, labels: IndexedReader | None, order: SampleOrder, seq_length: int, pad_label: int
    ) -> None:
        """pad_label: of the padding of samples that are not full; its text is 0, and with label files IGNORED."""
        self._reader = reader
        self._labels = labels
        self._order = order
        self._size = seq_length + 1
        self._pad_label = pad_label
        for array in (reader.tokens, order.sample_idx, order.doc_idx):
            _expect_random_reads(array)

    def __len__(self) -> int:
        """GPT-NeoX's length: one less than the samples there are."""
        return len(self._order) - 1

    def __getitem__(self, item: int) -> tuple[Array, Array]:
        """Sample `item`. The item len(self) exists too; those beyond wrap, as in GPT-NeoX."""
        if item >= len(self._order):
            item %= max(len(self), 1)
        spans = self._spans(int(self._order.shuffle_idx[item]))
        text = _gather(self._reader, *spans)[: self._size]
        padding = (0, self._size - len(text))
        if self._labels is not None:
            labels = _gather(self._labels, *spans)[: self._size]
            return np.pad(text, padding), np.pad(labels, padding, constant_values=IGNORED)
        if padding[1] == 0:
            return text, text
        return np.pad(text, padding), np.pad(text, padding, constant_values=self._pad_label)

    def _spans(self, sample: int) -> tuple[Array, Array, Array]:
        """Documents of a sample, and the first token and the number of tokens it takes of each."""
        order = self._order
        (first, begin), (last, end) = order.sample_idx[sample].tolist(), order.sample_idx[sample + 1].tolist()
        if last == len(order.doc_idx):
            # The last sample of whole documents has no successor: GPT-NeoX gives the first item instead, for ever
            # looking where that is this one.
            replacement = int(order.shuffle_idx[0])
            if replacement != sample:
                return self._spans(replacement)
        documents = order.doc_idx[first : last + 1]
        skipped = np.zeros(len(documents), np.int64)
        skipped[0] = begin
        lengths = self._reader.sizes[documents] - skipped
        if last < len(order.doc_idx):
            # Of an empty document that begins the next sample GPT-NeoX takes the token behind it in the file.
            behind = len(self._reader.tokens) - int(self._reader.pointers[documents[-1]]) // self._reader.dtype.itemsize
            lengths[-1] = min(end + 1, behind) - skipped[-1]
        return documents, skipped, lengths


def _expect_random_reads(array: Array) -> None:
    """Of a mapped file: no 128 KiB around each shuffled sample of 4 KiB, which would push others out of memory."""
    file = getattr(array, "base", None)  # tokens behind a URL have none
    if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        file.madvise(mmap.MADV_RANDOM)


def _gather(reader: IndexedReader, documents: Array, skipped: Array, lengths: Array) -> Array:
    starts = reader.pointers[documents] // reader.dtype.itemsize + skipped
    ends = np.cumsum(lengths)
    places = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    found: Array = reader.tokens[places].astype(np.int64)
    return found


class BlendedDataset:
    """Samples of several token files: `dataset_index` [n] uint8 says which gives each, its next one in order."""

    def __init__(self, datasets: Sequence[TokenDataset], dataset_index: Array, counts: Array) -> None:
        """counts [n / BLOCK, files]: samples that each file gave before every BLOCK-th."""
        self._datasets = datasets
        self._index = dataset_index
        self._counts = counts

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, item: int) -> tuple[Array, Array]:
        """Sample `item`."""
        item %= len(self)
        number = int(self._index[item])
        block = item // BLOCK
        before = int(np.count_nonzero(self._index[block * BLOCK : item] == number))
        return self._datasets[number][int(self._counts[block, number]) + before]
