"""Sample order: which tokens of which documents make training sample i, byte for byte GPT-NeoX's packed order."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neox.config.errors import UserError
from neox.data.durable import replacing, write_json

Array = np.ndarray[Any, Any]
NAMES = ("doc_idx", "sample_idx", "shuffle_idx")


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


def build_order(sizes: Array, documents: range, num_samples: int, seq_length: int, seed: int) -> SampleOrder:
    """Order of at least `num_samples` samples of seq_length + 1 tokens over whole epochs of `documents`.

    sizes [S] int32, tokens of every item. UserError when the documents hold no tokens, or too few for one sample.
    """
    own = sizes[documents.start : documents.stop]
    per_epoch = int(np.sum(own, dtype=np.int64))
    if per_epoch == 0:
        raise UserError(
            f"documents {documents.start} to {documents.stop} hold no tokens; change data.split or add text"
        )
    # The least number of epochs E with (E·T - 1) // s >= n; one token more than n·s, for the last label.
    num_epochs = max(1, -(-(num_samples * seq_length + 1) // per_epoch))
    generator = np.random.RandomState(seed)
    doc_idx = np.tile(np.arange(documents.start, documents.stop, dtype=np.int32), num_epochs)
    generator.shuffle(doc_idx)
    sample_idx = _sample_starts(sizes, doc_idx, num_epochs * per_epoch, seq_length)
    num_available = len(sample_idx) - 1
    if num_available == 0:
        raise UserError(
            f"{per_epoch} tokens are too few for one sample of {seq_length} + 1; change data.split or add text"
        )
    wide = num_available >= np.iinfo(np.uint32).max - 1
    shuffle_idx = np.arange(num_available, dtype=np.int64 if wide else np.uint32)
    generator.shuffle(shuffle_idx)
    return SampleOrder(doc_idx, sample_idx, shuffle_idx)


def _sample_starts(sizes: Array, doc_idx: Array, num_tokens: int, seq_length: int) -> Array:
    """Where the tokens 0, s, 2s, … of the shuffled documents laid end to end lie: [K+1, 2]."""
    num_samples = (num_tokens - 1) // seq_length
    # GPT-NeoX compares the unrounded quotient.
    narrow = 2 * ((num_tokens - 1) / seq_length + 1) < np.iinfo(np.int32).max
    starts = np.empty((num_samples + 1, 2), dtype=np.int32 if narrow else np.int64)
    ends = np.cumsum(sizes[doc_idx], dtype=np.int64)
    positions = np.arange(num_samples + 1, dtype=np.int64) * seq_length
    # The first document whose end lies beyond the token: empty ones are passed over.
    which = np.searchsorted(ends, positions, side="right")
    starts[:, 0] = which
    starts[:, 1] = positions - (ends[which] - sizes[doc_idx[which]])
    starts[0] = 0  # even where the first document is empty
    return starts


def load_order(
    prefix: str | Path, part: str, sizes: Array, documents: range, num_samples: int, seq_length: int, seed: int
) -> SampleOrder:
    """The order, from GPT-NeoX's cache files beside the data, which are built when absent or when the data changed.

    Ranks may call it at once: every file is renamed into place, and its content depends on the arguments alone. In a
    folder that cannot be written the order is built in memory.
    """
    stem = Path(f"{prefix}_{part}_indexmap_{num_samples}ns_{seq_length}sl_{seed}s_packedpi_ac")
    key = {
        "documents": [documents.start, documents.stop],
        "sizes_sha256": hashlib.sha256(np.ascontiguousarray(sizes).data).hexdigest(),
    }
    cached = _read_cache(stem, key)
    if cached:
        return cached
    order = build_order(sizes, documents, num_samples, seq_length, seed)
    if os.access(stem.parent, os.W_OK):
        _write_cache(stem, key, order)
    return order


def _cache_file(stem: Path, name: str) -> Path:
    return stem.with_name(f"{stem.name}_{name}")


def _read_cache(stem: Path, key: dict[str, Any]) -> SampleOrder | None:
    try:
        if json.loads(_cache_file(stem, "key.json").read_text()) != key:
            return None
        arrays = [np.load(_cache_file(stem, f"{name}.npy"), mmap_mode="r") for name in NAMES]
    except (OSError, ValueError, EOFError):  # absent, being replaced by another rank, or damaged
        return None
    return SampleOrder(*arrays)


def _write_cache(stem: Path, key: dict[str, Any], order: SampleOrder) -> None:
    # Without its key a cache is void, so an interruption between the files leaves nothing that could be believed.
    _cache_file(stem, "key.json").unlink(missing_ok=True)
    for name in NAMES:
        with replacing(_cache_file(stem, f"{name}.npy")) as (temporary,), temporary.open("wb") as file:
            np.save(file, getattr(order, name))
    write_json(_cache_file(stem, "key.json"), key)
