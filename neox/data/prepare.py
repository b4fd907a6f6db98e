"""From JSON lines to token files: tokenise in parallel processes, merge parts, describe the result."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from neox.config.errors import UserError
from neox.data.durable import dump_json
from neox.data.engine import Engine, choose_engine, make_engine
from neox.data.indexed import IndexedWriter, open_alike, token_dtype
from neox.data.jsonl import BadLineError, Batch, Span, batches, first_texts, no_document, parse_texts, shard_spans
from neox.data.statistics import UnigramCounts
from neox.data.tokenizer import LoadedTokenizer, load_tokenizer

PROGRESS_S = 10.0


@dataclass(frozen=True)
class Encoding:
    """How documents become tokens."""

    tokenizer: Path
    key: str = "text"
    """Where a line's JSON object keeps its text."""
    append_eod: bool = True
    """End each document with `<|endoftext|>`."""
    engine: str = "auto"
    """`auto`, `gigatoken` or `tokenizers`: how fast, never what is written."""


@dataclass(frozen=True)
class EncodedBatch:
    """The documents of a batch end to end; text_bytes counts their UTF-8."""

    tokens: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any]
    text_bytes: int


class Encoder:
    """Turns batches of lines into tokens; each process has one."""

    def __init__(self, encoding: Encoding, engine: Engine, eod: int, dtype: np.dtype[Any]) -> None:
        self._key = encoding.key
        self._engine = engine
        self._ending = np.array([eod] if encoding.append_eod else [], np.uint32)
        self._dtype = dtype

    def encode(self, lines: list[bytes]) -> EncodedBatch:
        """Each line that is not blank is one item, an empty text too. BadLineError when a line holds no document."""
        texts = parse_texts(lines, self._key)
        found = self._engine.encode(texts)
        sizes = np.fromiter(map(len, found), np.int32, len(found)) + np.int32(len(self._ending))
        pieces = [piece for ids in found for piece in (ids, self._ending)]
        tokens = np.concatenate(pieces).astype(self._dtype) if pieces else np.zeros(0, self._dtype)
        return EncodedBatch(tokens, sizes, sum(len(text.encode()) for text in texts))


_encoder: Encoder


def _start_worker(encoding: Encoding, eod: int, dtype: np.dtype[Any]) -> None:
    global _encoder
    _encoder = Encoder(encoding, make_engine(encoding.engine, encoding.tokenizer), eod, dtype)


def _encode_in_worker(lines: list[bytes]) -> EncodedBatch:
    return _encoder.encode(lines)


def tokenize(
    inputs: Sequence[Path],
    encoding: Encoding,
    output: Path,
    shard: tuple[int, int] = (0, 1),
    workers: int = 1,
) -> dict[str, Any]:
    """Write PREFIX.bin, .idx and .manifest.json for part shard[0] of shard[1] of the inputs; returns the manifest.

    Any number of workers gives the same files, and so do any number of shards once merged. UserError names the file and
    line that is wrong, or the files that hold no document; then nothing is written.
    """
    loaded = load_tokenizer(encoding.tokenizer)
    spans = shard_spans(inputs, *shard)
    sample = first_texts([span.path for span in spans], encoding.key)
    encoding = replace(encoding, engine=choose_engine(encoding.engine, encoding.tokenizer, loaded, sample))
    counts = UnigramCounts()
    sources = [_Source(span) for span in spans]
    dtype = token_dtype(loaded.vocab_size)
    documents = text_bytes = 0
    progress = _Progress()
    with _encoders(encoding, loaded, workers) as pool, IndexedWriter(output, dtype, manifest_path(output)) as writer:
        for encoded in _in_order(pool, _all_batches(sources), 2 * workers):
            writer.add_items(encoded.tokens, encoded.sizes)
            counts.add(encoded.tokens)
            documents += len(encoded.sizes)
            text_bytes += encoded.text_bytes
            progress.report(documents, counts.total, text_bytes)
        if shard[1] == 1 and not documents:
            raise no_document(inputs)
        about = {
            "append_eod": encoding.append_eod,
            "inputs": [source.describe() for source in sources],
            "shard": f"{shard[0]}/{shard[1]}",
            "tokenizer_engine": encoding.engine,
            "tokenizer_sha256": loaded.sha256,
            "vocab_size": loaded.vocab_size,
        }
        return _write_manifest(writer, documents, text_bytes, counts, about)


def merge_prefixes(prefixes: Sequence[Path], output: Path) -> dict[str, Any]:
    """Concatenate token files in the order given, and their manifests; returns the manifest.

    UserError when they came from different tokenizers, are shards that are not all there in order, or hold no document.
    """
    manifests = [_read_manifest(prefix) for prefix in prefixes]
    _check_mergeable(prefixes, manifests)
    readers = open_alike(prefixes)
    documents = sum(map(len, readers))
    if not documents:
        raise UserError(f"{', '.join(map(str, prefixes))}: no document in any of them")
    about: dict[str, Any] = {
        name: manifests[0][name] for name in ("append_eod", "tokenizer_sha256", "vocab_size") if name in manifests[0]
    }
    about |= {"inputs": [source for manifest in manifests for source in manifest.get("inputs", [])]}
    text_bytes = sum(manifest.get("text_bytes") or 0 for manifest in manifests) if all(manifests) else None
    counts = UnigramCounts()
    with IndexedWriter(output, readers[0].dtype, manifest_path(output)) as writer:
        for reader in readers:
            writer.add_file(reader, counts.add)
        return _write_manifest(writer, documents, text_bytes, counts, about)


def manifest_path(prefix: str | Path) -> Path:
    """PREFIX.manifest.json."""
    return Path(f"{prefix}.manifest.json")


class _Source:
    """A span of an input, hashed as it is read."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._hash = hashlib.sha256()
        self._num_bytes = 0

    def batches(self) -> Iterator[Batch]:
        for batch in batches(self.span):
            for line in batch.lines:
                self._hash.update(line)
            self._num_bytes += sum(map(len, batch.lines))
            yield batch

    def describe(self) -> dict[str, Any]:
        """File name, and the size and hash of the (decompressed) lines that were read."""
        return {"file": self.span.path.name, "bytes": self._num_bytes, "sha256": self._hash.hexdigest()}


def _all_batches(sources: Iterable[_Source]) -> Iterator[Batch]:
    for source in sources:
        yield from source.batches()


@contextmanager
def _encoders(encoding: Encoding, loaded: LoadedTokenizer, workers: int) -> Iterator[Executor | Encoder]:
    """A pool of processes, or for one worker this process."""
    dtype = token_dtype(loaded.vocab_size)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    if workers == 1:
        yield Encoder(encoding, make_engine(encoding.engine, encoding.tokenizer, loaded), loaded.eod, dtype)
        return
    # spawn: a fork would copy the tokenizer library's threads in an unknown state.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (encoding, loaded.eod, dtype))
    try:
        # Started before any file is: being stopped half-way through the start then leaves none.
        pool.submit(os.getpid).result()
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: Executor | Encoder, source: Iterator[Batch], ahead: int) -> Iterator[EncodedBatch]:
    """Encode batches, at most `ahead` of them waiting, and give them back in the order they came."""
    if isinstance(pool, Encoder):
        for batch in source:
            try:
                yield pool.encode(batch.lines)
            except BadLineError as bad:
                raise batch.error(bad) from None
        return
    waiting: deque[tuple[Batch, Future[EncodedBatch]]] = deque()
    for batch in source:
        waiting.append((batch, pool.submit(_encode_in_worker, batch.lines)))
        if len(waiting) > ahead:
            yield _finish(*waiting.popleft())
    while waiting:
        yield _finish(*waiting.popleft())


def _finish(batch: Batch, future: Future[EncodedBatch]) -> EncodedBatch:
    try:
        return future.result()
    except BadLineError as bad:
        raise batch.error(bad) from None


class _Progress:
    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def report(self, documents: int, tokens: int, text_bytes: int) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_S:
            self._last = now
            rate = text_bytes / 1e6 / (now - self._start)
            print(f"{documents} documents, {tokens} tokens, {rate:.1f} MB/s", file=sys.stderr, flush=True)


def _write_manifest(
    writer: IndexedWriter, documents: int, text_bytes: int | None, counts: UnigramCounts, about: dict[str, Any]
) -> dict[str, Any]:
    tokens = counts.total
    manifest = about | {
        "bytes_per_token": text_bytes / tokens if text_bytes is not None and tokens else None,
        "documents": documents,
        "dtype": str(writer.dtype),
        "text_bytes": text_bytes,
        "tokens": tokens,
        "unigram_entropy": counts.entropy(),
    }
    assert writer.companion is not None
    dump_json(writer.companion, manifest)
    return manifest


def _read_manifest(prefix: Path) -> dict[str, Any]:
    """The manifest, or nothing for token files that another program made."""
    try:
        return dict(json.loads(manifest_path(prefix).read_text()))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{manifest_path(prefix)}: not JSON ({error}); tokenise the shard again") from error


def _check_mergeable(prefixes: Sequence[Path], manifests: Sequence[dict[str, Any]]) -> None:
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        for name in ("tokenizer_sha256", "append_eod"):
            if manifest.get(name) != manifests[0].get(name):
                raise UserError(f"{prefix}: its {name} differs from that of {prefixes[0]}; tokenise both the same way")
    shards = [manifest.get("shard") for manifest in manifests]
    if any(shard not in (None, "0/1") for shard in shards):
        expected = [f"{index}/{len(shards)}" for index in range(len(shards))]
        if shards != expected:
            raise UserError(f"merge: the shards are {shards}, but must be all of one input in order: {expected}")
