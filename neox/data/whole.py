"""Sample orders that keep documents whole: as many as fit a sample, or one in each; byte for byte GPT-NeoX's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from neox.config.errors import UserError
from neox.data.index_maps import digest
from neox.data.indexed import IndexedReader
from neox.data.samples import Array

IGNORED = -100
"""The label of a token that the loss does not count."""
BLOCK = 1 << 16
"""Documents whose labels are looked at together."""


@dataclass(frozen=True)
class WholePlan:
    """The order of `num_requested` samples that are whole documents, cut or padded to seq_length + 1 tokens."""

    documents: range
    num_requested: int
    seq_length: int
    seed: int
    packing: str
    """pack_until_overflow: documents, shuffled in each pass, until the next would not fit; unpacked: one document, in
    the order of the file, so that only the samples are shuffled."""
    allow_chopped: bool
    """Whether documents longer than a sample are taken, and cut."""
    labels: IndexedReader | None
    """Documents whose labels are all ignored are passed over."""

    @property
    def num_samples(self) -> int:
        """K: samples there are."""
        return self.num_requested

    def key(self) -> dict[str, Any]:
        """What the order depends on besides sizes and documents, and what the names of the files say: the labels."""
        return {} if self.labels is None else {"labels_sha256": digest(self._has_labels(self.labels))}

    def write(self, sizes: Array, files: Sequence[BinaryIO]) -> None:
        """Writes doc_idx, sample_idx and shuffle_idx as .npy, all int64.

        sizes [S] int32: tokens of every document of the token file.

        Raises:
            UserError: every document is passed over.
        """
        own = sizes[self.documents.start : self.documents.stop].astype(np.int64)
        is_taken = ~self._is_passed_over(own)
        if not is_taken.any():
            raise UserError(
                f"data.packing = {self.packing}: each of documents {self.documents.start} to {self.documents.stop} is "
                f"longer than {self.seq_length} + 1 tokens, or all its labels are ignored"
            )
        generator = np.random.RandomState(self.seed)
        shuffle_idx = np.arange(self.num_requested)
        generator.shuffle(shuffle_idx)
        if self.packing == "unpacked":
            doc_idx = np.resize(np.flatnonzero(is_taken), self.num_requested + 1)
            starts = np.arange(self.num_requested + 1)
        else:
            doc_idx, starts = self._fill(own, is_taken, generator.shuffle)
        np.save(files[0], doc_idx + self.documents.start)
        np.save(files[1], np.stack([starts, np.zeros_like(starts)], axis=1))
        np.save(files[2], shuffle_idx)

    def _fill(self, own: Array, is_taken: Array, shuffle: Callable[[Array], None]) -> tuple[Array, Array]:
        """Documents in order, and the place among them where each sample begins, and one place more.

        A sample that begins with an empty document ends with it, and the last holds one document: as in GPT-NeoX.
        """
        order, ahead = np.arange(len(own)), np.empty(0, np.int64)  # a pass, and documents that no sample has yet
        ends = np.cumsum(own[ahead])
        dealt: list[Array] = []
        starts: list[int] = []
        offset = place = 0
        while len(starts) < self.num_requested:
            limit = (ends[place - 1] if place else 0) + self.seq_length + 1
            if place == len(ahead) or (own[ahead[place]] and ends[-1] <= limit):  # the next pass may fit as well
                dealt.append(ahead[:place])
                shuffle(order)
                ahead = np.concatenate([ahead[place:], order[is_taken[order]]])
                ends = np.cumsum(own[ahead])
                offset, place = offset + place, 0
                continue
            starts.append(offset + place)
            fitting = int(np.searchsorted(ends, limit, side="right"))
            place = max(fitting, place + 1) if own[ahead[place]] else place + 1
        doc_idx = np.concatenate([*dealt, ahead])[: starts[-1] + 1]
        return doc_idx, np.array([*starts, starts[-1] + 1])

    def _is_passed_over(self, own: Array) -> Array:
        """[documents] bool: too long for a sample, or without a label that counts."""
        is_long = own > self.seq_length + 1 if not self.allow_chopped else np.zeros(len(own), bool)
        if self.labels is None:
            return is_long
        return is_long | ~self._has_labels(self.labels)

    def _has_labels(self, labels: IndexedReader) -> Array:
        # GPT-NeoX looks at the labels of the sample in the one way, and of its first seq_length tokens in the other.
        return has_labels(labels, self.documents, self.seq_length + (self.packing != "unpacked"))


def has_labels(labels: IndexedReader, documents: range, limit: int) -> Array:
    """[documents] bool: whether one of the first `limit` labels of each document counts."""
    found = np.zeros(len(documents), bool)
    for first in range(0, len(documents), BLOCK):
        block = documents[first : first + BLOCK]
        lengths = labels.sizes[block.start : block.stop].astype(np.int64)
        ends = np.cumsum(lengths)
        begin = int(labels.pointers[block.start]) // labels.dtype.itemsize
        counted = labels.tokens[begin : begin + int(ends[-1])] != IGNORED
        which = np.repeat(np.arange(len(block)), lengths)
        counted &= np.arange(len(counted)) - (ends - lengths)[which] < limit
        found[first : first + len(block)][which[counted]] = True
    return found
