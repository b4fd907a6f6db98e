"""Labels that count what follows a delimiter in each document, as GPT-NeoX's preprocess_data_with_mask.py has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neox.config.errors import UserError
from neox.data.indexed import IndexedReader, IndexedWriter
from neox.data.whole import IGNORED


def mask_before(prefix: Path, delimiter: Sequence[int], output: Path) -> tuple[int, int]:
    """Writes a label file as long as the token file `prefix`: IGNORED up to and with the first `delimiter` of each
    document, its tokens elsewhere; a document without one counts whole.

    Returns the number of documents and of those with a delimiter. UserError when `prefix` is damaged or no document has
    one.
    """
    reader = IndexedReader(prefix).check()
    if reader.dtype.kind == "f":
        raise UserError(f"{prefix}: holds {reader.dtype}, not tokens")
    pattern = np.array(delimiter, np.int64)
    num_masked = 0
    with IndexedWriter(output, np.dtype(np.int32)) as writer:
        for number in range(len(reader)):
            labels = reader[number].astype(np.int32)
            if (end := first_end(labels, pattern)) is not None:
                labels[:end] = IGNORED
                num_masked += 1
            writer.add_items(labels, np.array([len(labels)]))
        if not num_masked:
            raise UserError(f"{prefix}: --before-token {','.join(map(str, delimiter))} is in none of its documents")
    return len(reader), num_masked


def first_end(tokens: np.ndarray[Any, Any], pattern: np.ndarray[Any, Any]) -> int | None:
    """Where the first occurrence of `pattern` [k] in `tokens` [n] ends; None: there is none."""
    if len(tokens) < len(pattern):
        return None
    starts = np.flatnonzero(tokens[: len(tokens) - len(pattern) + 1] == pattern[0])
    for start in starts.tolist():
        if np.array_equal(tokens[start : start + len(pattern)], pattern):
            return int(start) + len(pattern)
    return None
