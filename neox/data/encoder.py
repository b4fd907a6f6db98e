"""What one process of tokenising does: batches of records become tokens, and the fast engine proves itself on some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from neox.data.engine import Engine, make_engine, prove_equal
from neox.data.formats.contract import Span
from neox.data.formats.registry import FORMATS
from neox.data.indexed import token_dtype
from neox.data.reading import Parsed, Reading, first_texts, parse
from neox.data.tokenizer import LoadedTokenizer, load_tokenizer

Array = np.ndarray[Any, Any]


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
    """The documents of a batch end to end; text_bytes counts their UTF-8, parsed says what was left out.

    Tokens beyond `sizes` are of a document that the next batch goes on with.
    """

    tokens: Array
    sizes: Array
    text_bytes: int
    parsed: Parsed


class Encoder:
    """Turns batches of records into tokens; each process has one."""

    def __init__(self, encoding: Encoding, engine: str, loaded: LoadedTokenizer, num_processes: int = 1) -> None:
        """engine: `gigatoken` or `tokenizers`. UnequalError when it cannot be had for this tokenizer."""
        self._recipe = (encoding, engine, num_processes)
        self._reading = encoding.reading
        self._loaded = loaded
        self._engine: Engine = make_engine(engine, encoding.tokenizer, loaded, num_processes)
        self._beginning = np.array(loaded.before, np.uint32)
        self._ending = np.array([*loaded.after, *([loaded.eod] if encoding.append_eod else [])], np.uint32)
        self._dtype = token_dtype(loaded.vocab_size)

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is not forked makes its own from the tokenizer's file."""
        return load_encoder, self._recipe

    def prove(self, spans: Sequence[Span]) -> None:
        """UnequalError unless the first documents are encoded as the `tokenizers` library does."""
        if self._recipe[1] == "gigatoken":
            prove_equal(self._engine, self._loaded, first_texts(spans, self._reading))

    def encode(self, name: str, records: Sequence[bytes]) -> EncodedBatch:
        """Each document of records of the format `name` is one item; token ids stay as they are, nothing added."""
        parsed = parse(name, records, self._reading, self._loaded.vocab_size)
        if FORMATS[name].has_tokens:
            return self._laid([[np.asarray(ids)] for ids in parsed.documents], 0, parsed)
        texts = [str(text) for text in parsed.documents]
        found = [(self._beginning, ids, self._ending) for ids in self._engine.encode(texts)]
        return self._laid(found, sum(map(_num_bytes, texts)), parsed)

    def encode_piece(self, text: str, is_first: bool, is_last: bool) -> EncodedBatch:
        """A document, or a piece of one."""
        found = (self._beginning[: None if is_first else 0], *self._engine.encode([text]))
        laid = self._laid([(*found, self._ending[: None if is_last else 0])], _num_bytes(text), Parsed([], [], 0))
        return laid if is_last else replace(laid, sizes=laid.sizes[:0])

    def _laid(self, documents: Sequence[Sequence[Array]], text_bytes: int, parsed: Parsed) -> EncodedBatch:
        sizes = np.fromiter((sum(map(len, parts)) for parts in documents), np.int32, len(documents))
        parts = [np.zeros(0, self._dtype), *chain.from_iterable(documents)]
        tokens = np.concatenate(parts, dtype=self._dtype, casting="unsafe")
        return EncodedBatch(tokens, sizes, text_bytes, replace(parsed, documents=[]))


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def load_encoder(encoding: Encoding, engine: str, num_processes: int) -> Encoder:
    """The encoder of one of so many processes, from the tokenizer's file. UserError when that is none."""
    return Encoder(encoding, engine, load_tokenizer(encoding.tokenizer, encoding.end_of_document), num_processes)
