"""Looking at a token file: damage, ids against tokenizer and model, lengths of documents, text of some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neox.config.errors import UserError
from neox.data.indexed import BLOCK, IndexedReader, bin_path
from neox.data.manifest import manifest_path, read_manifest
from neox.data.tokenizer import LoadedTokenizer

Array = np.ndarray[Any, Any]
NUM_SAMPLES = 3
SAMPLE_TOKENS = 48
BAR = 40
"""Characters of the histogram's longest bar."""


@dataclass(frozen=True)
class Vocabulary:
    """What the ids of a token file are held against; None: nothing is known of it."""

    tokenizer: LoadedTokenizer | None = None
    model_ids: int | None = None
    """Ids that the model was told of, model.vocab_size."""
    model_rows: int | None = None
    """Rows of its embedding, with padding."""


def check_tokens(prefix: Path, vocabulary: Vocabulary) -> Iterator[str]:
    """Lines that describe a token file, all of which was read.

    Raises:
        UserError: the file is damaged, is not what its manifest says, or has ids that tokenizer or model lack.
    """
    reader = IndexedReader(prefix).check()
    _check_manifest(reader, vocabulary.tokenizer)
    num_bytes = bin_path(prefix).stat().st_size
    yield f"{prefix}: {len(reader)} documents, {len(reader.tokens)} tokens of {reader.dtype}, {num_bytes / 1e6:.1f} MB"
    if len(reader.doc_idx) != len(reader) + 1:
        yield f"bounds        {max(len(reader.doc_idx) - 1, 0)} documents of one or more items, by the index"
    if not len(reader.tokens):
        return
    least, most = _extremes(reader)
    yield f"{'values' if reader.dtype.kind == 'f' else 'ids':<14}{least} to {most}"
    if reader.dtype.kind != "f":
        yield from _ids(reader, int(least), int(most), vocabulary)
    yield from _lengths(np.asarray(reader.sizes))
    if vocabulary.tokenizer and reader.dtype.kind != "f":
        yield from _ends(reader, vocabulary.tokenizer.eod, vocabulary.tokenizer.eod_token)
        yield from _texts(reader, vocabulary.tokenizer)


def _check_manifest(reader: IndexedReader, tokenizer: LoadedTokenizer | None) -> None:
    manifest = read_manifest(reader.prefix)
    found = {"documents": len(reader), "tokens": len(reader.tokens), "dtype": str(reader.dtype)}
    found |= {"tokenizer_sha256": tokenizer.sha256} if tokenizer else {}
    for name, value in found.items():
        if manifest.get(name, value) != value:
            raise UserError(f"{manifest_path(reader.prefix)}: says {name} {manifest[name]}, but it is {value}")


def _blocks(reader: IndexedReader) -> Iterator[tuple[int, Array]]:
    for start in range(0, len(reader.tokens), BLOCK):
        yield start, np.asarray(reader.tokens[start : start + BLOCK])


def _extremes(reader: IndexedReader) -> tuple[Any, Any]:
    pairs = [(block.min(), block.max()) for _, block in _blocks(reader)]
    return min(least for least, _ in pairs), max(most for _, most in pairs)


def _ids(reader: IndexedReader, least: int, most: int, vocabulary: Vocabulary) -> Iterator[str]:
    known = {} if vocabulary.tokenizer is None else {"the tokenizer": vocabulary.tokenizer.vocab_size}
    known |= {} if vocabulary.model_ids is None else {"the model": vocabulary.model_ids}
    limit = min(known.values(), default=most + 1)
    if least < -100 or most >= limit:
        number, wrong = _first_outside(reader, limit)
        raise UserError(
            f"{bin_path(reader.prefix)}: document {number} has id {wrong}, but there are ids 0 to {limit - 1}; another "
            "tokenizer made it"
        )
    if least < 0:
        yield f"              negative ones are labels that do not count: {_count(reader, -100)} of -100"
    if known:
        parts = [f"{name} has {ids}" for name, ids in known.items()]
        if vocabulary.model_rows:
            parts.append(f"{vocabulary.model_rows} rows, {vocabulary.model_rows - limit} of them padding")
        yield f"vocabulary    {', '.join(parts)}"


def _first_outside(reader: IndexedReader, limit: int) -> tuple[int, int]:
    """Document and id of the first token that is none."""
    for start, block in _blocks(reader):
        wrong = np.flatnonzero((block >= limit) | (block.astype(np.int64) < -100))
        if len(wrong):
            position = (start + int(wrong[0])) * reader.dtype.itemsize
            return int(np.searchsorted(reader.pointers, position, side="right")) - 1, int(block[wrong[0]])
    raise AssertionError("there is one")


def _count(reader: IndexedReader, token: int) -> int:
    return sum(int(np.count_nonzero(block == token)) for _, block in _blocks(reader))


def _lengths(sizes: Array) -> Iterator[str]:
    """Tokens of the documents: figures, and a histogram over powers of two."""
    middle, high = np.quantile(sizes, [0.5, 0.99])
    yield (
        f"lengths       mean {sizes.mean():.1f}, least {sizes.min()}, median {middle:.0f}, 99 % below {high:.0f}, "
        f"most {sizes.max()}, {np.count_nonzero(sizes == 0)} empty"
    )
    counts = np.bincount(np.ceil(np.log2(sizes[sizes > 0].astype(np.float64) + 1)).astype(np.int64) - 1)
    for power in np.flatnonzero(counts):
        bar = "#" * -(-BAR * int(counts[power]) // int(counts.max()))
        yield f"  {2**power:>9} to {2 ** (power + 1) - 1:<9} {counts[power]:>9} {bar}"


def _ends(reader: IndexedReader, eod: int, token: str) -> Iterator[str]:
    last = reader.pointers // reader.dtype.itemsize + reader.sizes - 1
    num_ended = int(np.count_nonzero(reader.tokens[last[reader.sizes > 0]] == eod))
    inside = _count(reader, eod) - num_ended
    yield f"ends          {num_ended} of {len(reader)} documents end with {token}, {inside} stand inside"


def _texts(reader: IndexedReader, tokenizer: LoadedTokenizer) -> Iterator[str]:
    for number in sorted({(len(reader) - 1) * part // (NUM_SAMPLES - 1) for part in range(NUM_SAMPLES)}):
        ids = [token for token in reader[number][:SAMPLE_TOKENS].tolist() if token >= 0]
        yield f"document {number}: {tokenizer.tokenizer.decode(ids, skip_special_tokens=False)!r}"
