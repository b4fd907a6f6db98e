"""From a corpus to token files: tokenise in parallel processes, describe the result."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from neox.data.engine import Engine, choose_engine, make_engine
from neox.data.formats.contract import Batch, Span
from neox.data.formats.registry import FORMATS
from neox.data.indexed import IndexedWriter, token_dtype
from neox.data.manifest import manifest_path, write_manifest
from neox.data.reading import Losses, Parsed, Reading, batches, files, first_texts, no_document, parse, shard_spans
from neox.data.statistics import UnigramCounts
from neox.data.tokenizer import LoadedTokenizer, load_tokenizer

PROGRESS_S = 10.0


@dataclass(frozen=True)
class Encoding:
    """How documents become tokens."""

    tokenizer: Path
    reading: Reading = field(default_factory=Reading)
    """Which documents there are."""
    append_eod: bool = True
    """End each document with the token that says so."""
    end_of_document: str | None = None
    """That token. None: the first known one that the tokenizer has."""
    engine: str = "auto"
    """`auto`, `gigatoken` or `tokenizers`: how fast, never what is written."""


@dataclass(frozen=True)
class EncodedBatch:
    """The documents of a batch end to end; text_bytes counts their UTF-8, parsed says what was left out."""

    tokens: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any]
    text_bytes: int
    parsed: Parsed


class Encoder:
    """Turns batches of records into tokens; each process has one."""

    def __init__(self, encoding: Encoding, engine: Engine, loaded: LoadedTokenizer) -> None:
        self._reading = encoding.reading
        self._engine = engine
        self._beginning = np.array(loaded.before, np.uint32)
        self._ending = np.array([*loaded.after, *([loaded.eod] if encoding.append_eod else [])], np.uint32)
        self._vocab_size = loaded.vocab_size
        self._dtype = token_dtype(loaded.vocab_size)

    def encode(self, name: str, records: Sequence[bytes]) -> EncodedBatch:
        """Each document of records of the format `name` is one item; token ids stay as they are, nothing added."""
        parsed = parse(name, records, self._reading, self._vocab_size)
        if FORMATS[name].has_tokens:
            return self._laid([np.asarray(ids) for ids in parsed.documents], 0, parsed)
        texts = [str(text) for text in parsed.documents]
        found = [np.concatenate([self._beginning, ids, self._ending]) for ids in self._engine.encode(texts)]
        return self._laid(found, sum(len(text.encode()) for text in texts), parsed)

    def _laid(self, documents: list[np.ndarray[Any, Any]], text_bytes: int, parsed: Parsed) -> EncodedBatch:
        sizes = np.fromiter(map(len, documents), np.int32, len(documents))
        tokens = np.concatenate([np.zeros(0, self._dtype), *(ids.astype(self._dtype) for ids in documents)])
        return EncodedBatch(tokens, sizes, text_bytes, replace(parsed, documents=[]))


_encoder: Encoder


def _start_worker(encoding: Encoding, num_workers: int) -> None:
    global _encoder
    loaded = load_tokenizer(encoding.tokenizer, encoding.end_of_document)
    _encoder = Encoder(encoding, make_engine(encoding.engine, encoding.tokenizer, loaded, num_workers), loaded)


def _encode_in_worker(name: str, records: list[bytes]) -> EncodedBatch:
    return _encoder.encode(name, records)


def tokenize(
    inputs: Sequence[Path],
    encoding: Encoding,
    output: Path,
    shard: tuple[int, int] = (0, 1),
    workers: int = 1,
) -> dict[str, Any]:
    """Write PREFIX.bin, .idx and .manifest.json for part shard[0] of shard[1] of the inputs; returns the manifest.

    Any number of workers gives the same files, and so do any number of shards once merged. UserError names the file and
    record that is broken, unless the reading is lenient, or the files that hold no document; then nothing is written.
    """
    loaded = load_tokenizer(encoding.tokenizer, encoding.end_of_document)
    spans = shard_spans(files(inputs, encoding.reading), *shard)
    sample = first_texts(spans, encoding.reading)
    encoding = replace(encoding, engine=choose_engine(encoding.engine, encoding.tokenizer, loaded, sample))
    counts, losses = UnigramCounts(), Losses(encoding.reading.is_lenient)
    sources = [_Source(span, encoding.reading) for span in spans]
    dtype = token_dtype(loaded.vocab_size)
    documents = text_bytes = 0
    progress = _Progress()
    with _encoders(encoding, loaded, workers) as pool, IndexedWriter(output, dtype, manifest_path(output)) as writer:
        for batch, encoded in _in_order(pool, _all_batches(sources), 2 * workers):
            losses.count(batch, encoded.parsed)
            writer.add_items(encoded.tokens, encoded.sizes)
            counts.add(encoded.tokens)
            documents += len(encoded.sizes)
            text_bytes += encoded.text_bytes
            progress.report(documents, counts.total, text_bytes)
        losses.tell()
        if shard[1] == 1 and not documents:
            raise no_document(inputs)
        about = {
            "append_eod": encoding.append_eod,
            "broken": losses.broken,
            "end_of_document": loaded.eod_token,
            "broken_first": losses.first_broken,
            "inputs": [source.describe() for source in sources],
            "left_out": losses.left_out,
            "shard": f"{shard[0]}/{shard[1]}",
            "tokenizer_engine": encoding.engine,
            "tokenizer_sha256": loaded.sha256,
            "vocab_size": loaded.vocab_size,
        }
        return write_manifest(writer, documents, text_bytes, counts, about)


class _Source:
    """A span of an input, hashed as it is read."""

    def __init__(self, span: Span, reading: Reading) -> None:
        self._span, self._reading = span, reading
        self._hash = hashlib.sha256()
        self._num_bytes = 0

    def batches(self) -> Iterator[Batch]:
        for batch in batches(self._span, self._reading):
            for record in batch.records:
                self._hash.update(record)
            self._num_bytes += sum(map(len, batch.records))
            yield batch

    def describe(self) -> dict[str, Any]:
        """File name, and the size and hash of the (decompressed) records that were read."""
        return {"file": self._span.path.name, "bytes": self._num_bytes, "sha256": self._hash.hexdigest()}


def _all_batches(sources: Iterable[_Source]) -> Iterator[Batch]:
    for source in sources:
        yield from source.batches()


@contextmanager
def _encoders(encoding: Encoding, loaded: LoadedTokenizer, workers: int) -> Iterator[Executor | Encoder]:
    """A pool of processes, or for one worker this process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    if workers == 1:
        yield Encoder(encoding, make_engine(encoding.engine, encoding.tokenizer, loaded), loaded)
        return
    # spawn: a fork would copy the tokenizer library's threads in an unknown state.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (encoding, workers))
    try:
        # Started before any file is: being stopped half-way through the start then leaves none.
        pool.submit(os.getpid).result()
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: Executor | Encoder, source: Iterator[Batch], ahead: int) -> Iterator[tuple[Batch, EncodedBatch]]:
    """Encode batches, at most `ahead` of them waiting, and give both back in the order they came."""
    if isinstance(pool, Encoder):
        for batch in source:
            yield batch, pool.encode(batch.span.format, batch.records)
        return
    waiting: deque[tuple[Batch, Future[EncodedBatch]]] = deque()
    for batch in source:
        done = pool.submit(_encode_in_worker, batch.span.format, batch.records)
        waiting.append((replace(batch, records=[]), done))  # only its place is still of use
        if len(waiting) > ahead:
            batch, done = waiting.popleft()
            yield batch, done.result()
    while waiting:
        batch, done = waiting.popleft()
        yield batch, done.result()


class _Progress:
    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def report(self, documents: int, tokens: int, text_bytes: int) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_S:
            self._last = now
            rate = text_bytes / 1e6 / (now - self._start)
            print(f"{documents} documents, {tokens} tokens, {rate:.1f} MB/s", file=sys.stderr, flush=True)
