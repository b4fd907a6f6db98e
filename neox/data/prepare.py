"""From a corpus to token files: tokenise in parallel processes, describe the result."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from neox.data.cuts import is_cuttable
from neox.data.encoder import EncodedBatch, Encoder, Encoding
from neox.data.engine import UnequalError, tell_fallback
from neox.data.formats.contract import Batch, Span
from neox.data.indexed import IndexedWriter, token_dtype
from neox.data.long import Piece, divided, divided_file
from neox.data.manifest import manifest_path, write_manifest
from neox.data.pool import encoders, in_order, prove
from neox.data.reading import Losses, Reading, batches, files, no_document, shard_spans
from neox.data.statistics import UnigramCounts
from neox.data.tokenizer import LoadedTokenizer, load_tokenizer

PROGRESS_S = 10.0


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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    loaded = load_tokenizer(encoding.tokenizer, encoding.end_of_document)
    spans = shard_spans(files(inputs, encoding.reading), *shard)
    job = _Job(encoding, loaded, inputs, spans, shard, output, workers)
    if encoding.engine != "tokenizers":
        try:
            return job.run("gigatoken")
        except UnequalError as why:
            tell_fallback(encoding.engine, why)
    return job.run("tokenizers")


@dataclass(frozen=True)
class _Job:
    encoding: Encoding
    loaded: LoadedTokenizer
    inputs: Sequence[Path]
    spans: Sequence[Span]
    shard: tuple[int, int]
    output: Path
    workers: int

    def run(self, engine: str) -> dict[str, Any]:
        """Tokenise with an engine. UnequalError, and nothing is written, when it is not equal to the reference."""
        encoder = Encoder(self.encoding, engine, self.loaded, self.workers)
        divides = is_cuttable(self.loaded.tokenizer)
        sources = [_Source(span, self.encoding.reading, divides) for span in self.spans]
        tally = _Tally(Losses(self.encoding.reading.is_lenient))
        writer = IndexedWriter(self.output, token_dtype(self.loaded.vocab_size), manifest_path(self.output))
        with encoders(encoder, self.workers) as pool, writer:
            proof = prove(pool, self.spans)
            records = chain.from_iterable(source.batches() for source in sources)
            for batch, encoded in in_order(pool, records, 2 * self.workers):
                if proof.done():
                    proof.result()
                tally.add(batch, encoded)
                writer.add_items(encoded.tokens, encoded.sizes)
            proof.result()
            tally.losses.tell()
            if self.shard[1] == 1 and not tally.documents:
                raise no_document(self.inputs)
            about = self._about(engine, tally.losses, sources)
            return write_manifest(writer, tally.documents, tally.text_bytes, tally.counts, about)

    def _about(self, engine: str, losses: Losses, sources: Sequence[_Source]) -> dict[str, Any]:
        """What the manifest says besides counts."""
        return {
            "append_eod": self.encoding.append_eod,
            "broken": losses.broken,
            "end_of_document": self.loaded.eod_token,
            "broken_first": losses.first_broken,
            "inputs": [source.describe() for source in sources],
            "left_out": losses.left_out,
            "shard": f"{self.shard[0]}/{self.shard[1]}",
            "tokenizer_engine": engine,
            "tokenizer_sha256": self.loaded.sha256,
            "vocab_size": self.loaded.vocab_size,
        }


class _Source:
    """A span of an input, hashed as it is read."""

    def __init__(self, span: Span, reading: Reading, divides: bool) -> None:
        """divides: long documents come in pieces."""
        self._span, self._reading, self._divides = span, reading, divides
        self._hash = hashlib.sha256()
        self._num_bytes = 0

    def batches(self) -> Iterator[Batch | Piece]:
        pieces = divided_file(self._span, self._reading, self._seen) if self._divides else None
        if pieces is not None:
            yield from pieces
            return
        for batch in batches(self._span, self._reading):
            for record in batch.records:
                self._seen(record)
            yield from divided(batch, self._reading) if self._divides else (batch,)

    def _seen(self, content: bytes) -> bytes:
        self._hash.update(content)
        self._num_bytes += len(content)
        return content

    def describe(self) -> dict[str, Any]:
        """File name, and the size and hash of the (decompressed) records that were read."""
        return {"file": self._span.path.name, "bytes": self._num_bytes, "sha256": self._hash.hexdigest()}


class _Tally:
    """What was written so far; said on stderr now and then."""

    def __init__(self, losses: Losses) -> None:
        self.losses, self.counts = losses, UnigramCounts()
        self.documents = self.text_bytes = 0
        self._start = self._last = time.monotonic()

    def add(self, batch: Batch, encoded: EncodedBatch) -> None:
        """Count a batch. UserError for a broken record, unless the reading is lenient."""
        self.losses.count(batch, encoded.parsed)
        self.counts.add(encoded.tokens)
        self.documents += len(encoded.sizes)
        self.text_bytes += encoded.text_bytes
        now = time.monotonic()
        if now - self._last >= PROGRESS_S:
            self._last = now
            rate = self.text_bytes / 1e6 / (now - self._start)
            print(
                f"{self.documents} documents, {self.counts.total} tokens, {rate:.1f} MB/s", file=sys.stderr, flush=True
            )
