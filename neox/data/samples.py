"""Sample order: which tokens of which documents make training sample i, byte for byte GPT-NeoX's packed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from neox.config.errors import UserError

Array = np.ndarray[Any, Any]
NAMES = ("doc_idx", "sample_idx", "shuffle_idx")
BLOCK = 1 << 18
"""Documents handled at a time: their sizes and ends stay in the processor's cache."""


@dataclass(frozen=True)
class SampleOrder:
    """doc_idx [E·documents] int32: documents of all epochs, shuffled together. sample_idx [K+1, 2]: position in doc_idx
    and token offset where each sample begins (neighbours share one token). shuffle_idx [K]: item i is sample
    shuffle_idx[i].
    """

    doc_idx: Array
    sample_idx: Array
    shuffle_idx: Array

    def __len__(self) -> int:
        return len(self.shuffle_idx)


def requested_samples(part: str, steps: int, global_batch: int, valid_interval: int, valid_batches: int) -> int:
    """How many samples GPT-NeoX asks of a part (data_utils.build_train_valid_test_data_iterators)."""
    if part == "train":
        return steps * global_batch
    rounds = steps // valid_interval + 1 if part == "valid" and valid_interval else 1
    return rounds * valid_batches * global_batch


@dataclass(frozen=True)
class PackedPlan:
    """The packed order of at least `num_requested` samples of seq_length + 1 tokens, over whole epochs of documents
    that are laid end to end; everything about it that is known before it is made.
    """

    documents: range
    num_requested: int
    seq_length: int
    seed: int
    num_epochs: int
    num_tokens: int
    """Of all epochs together."""

    @property
    def num_samples(self) -> int:
        """K: samples there are."""
        return (self.num_tokens - 1) // self.seq_length

    def key(self) -> dict[str, Any]:
        """What the order depends on besides sizes and documents, and what the names of the files say: nothing."""
        return {}

    def write(self, sizes: Array, files: Sequence[BinaryIO]) -> None:
        """Writes doc_idx, sample_idx and shuffle_idx as .npy; holds one of them in memory at a time.

        sizes [S] int32: tokens of every document of the token file.
        """
        generator = np.random.RandomState(self.seed)
        doc_idx = self._shuffled_documents(generator)
        np.save(files[0], doc_idx)
        _write_header(files[1], (self.num_samples + 1, 2), self._sample_dtype())
        # The file's head leaves its sizes at odd addresses, from which picking takes twice as long.
        for starts in self._sample_starts(sizes.copy(), doc_idx):
            files[1].write(starts.astype(self._sample_dtype()).data)
        del doc_idx
        wide = self.num_samples >= np.iinfo(np.uint32).max - 1
        shuffle_idx = np.arange(self.num_samples, dtype=np.int64 if wide else np.uint32)
        generator.shuffle(shuffle_idx)
        np.save(files[2], shuffle_idx)

    def _shuffled_documents(self, generator: np.random.RandomState) -> Array:
        """Every epoch's documents, shuffled as one."""
        doc_idx = np.empty((self.num_epochs, len(self.documents)), np.int32)
        doc_idx[:] = np.arange(self.documents.start, self.documents.stop, dtype=np.int32)
        shuffled: Array = doc_idx.reshape(-1)
        generator.shuffle(shuffled)
        return shuffled

    def _sample_dtype(self) -> np.dtype[Any]:
        # GPT-NeoX compares the unrounded quotient.
        narrow = 2 * ((self.num_tokens - 1) / self.seq_length + 1) < np.iinfo(np.int32).max
        return np.dtype(np.int32 if narrow else np.int64)

    def _sample_starts(self, sizes: Array, doc_idx: Array) -> Iterator[Array]:
        """Where the tokens 0, s, 2s, … of the shuffled documents lie, [n, 2] int64, a block of documents at a time."""
        end, last = 0, self.num_samples * self.seq_length
        for first in range(0, len(doc_idx), BLOCK):
            lengths = sizes.take(doc_idx[first : first + BLOCK]).astype(np.int64)
            ends = end + np.cumsum(lengths)
            # Samples that start before each document's end; an empty document begins none.
            before = np.minimum(ends - 1, last) // self.seq_length + 1
            begin = -(-end // self.seq_length)
            counts = np.diff(before, prepend=begin)
            starts = np.empty((int(before[-1]) - begin, 2), np.int64)
            which = np.repeat(np.arange(len(lengths)), counts)
            starts[:, 0] = which + first
            starts[:, 1] = np.arange(begin, int(before[-1])) * self.seq_length - (ends - lengths)[which]
            if begin == 0:
                starts[:1] = 0  # even where the first document is empty
            yield starts
            end = int(ends[-1])


def plan_packed(sizes: Array, documents: range, num_samples: int, seq_length: int, seed: int) -> PackedPlan:
    """The plan for `documents` of a token file whose sizes [S] int32 are given.

    Raises:
        UserError: the documents hold no tokens, or too few for one sample.
    """
    per_epoch = int(np.sum(sizes[documents.start : documents.stop], dtype=np.int64))
    if per_epoch == 0:
        raise UserError(
            f"documents {documents.start} to {documents.stop} hold no tokens; change data.split or add text"
        )
    # The least number of epochs E with (E·T - 1) // s >= n; one token more than n·s, for the last label.
    num_epochs = max(1, -(-(num_samples * seq_length + 1) // per_epoch))
    plan = PackedPlan(documents, num_samples, seq_length, seed, num_epochs, num_epochs * per_epoch)
    if plan.num_samples == 0:
        raise UserError(
            f"{per_epoch} tokens are too few for one sample of {seq_length} + 1; change data.split or add text"
        )
    return plan


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """The head that numpy.save gives an array of this shape, whose content is written after it in pieces."""
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
