"""What every format of a corpus offers: where its records lie, their bytes in batches, the document in each of them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Document = str | np.ndarray[Any, Any]
"""A text, or [n] int64 token ids that are what they are."""


PART = 1 << 19
"""Bytes of a long document that are made text at a time."""


class BadRecordError(Exception):
    """A record that holds no document; says why."""


@dataclass(frozen=True)
class Condition:
    """A field must have a value, or must not."""

    field: str
    value: str
    is_wanted: bool


@dataclass(frozen=True)
class Fields:
    """Which fields of a record make a document, and which decide whether it is taken."""

    key: str = "text"
    where: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Span:
    """The records of a file whose position lies in [start, stop); stop None: to the end.

    The format says what positions are: bytes after decompression, or rows.
    """

    path: Path
    format: str
    start: int = 0
    stop: int | None = None

    def holds(self, position: int) -> bool:
        """Whether the record at `position` is one of them."""
        return self.start <= position and not self.is_before(position)

    def is_before(self, position: int) -> bool:
        """Whether it ends before `position`."""
        return self.stop is not None and position >= self.stop


@dataclass(frozen=True)
class Batch:
    """Consecutive records of a span; `first` counts those of the span before them."""

    span: Span
    first: int
    records: list[bytes]


@dataclass(frozen=True)
class Format:
    """One kind of file, as functions without state: a process that knows its name can read any part of one."""

    suffixes: tuple[str, ...]
    """Endings of names."""
    length: Callable[[Path], int]
    """End of the positions of a file; only asked where a shard's border cuts it."""
    batches: Callable[[Span, Fields, int], Iterator[Batch]]
    """The span's records in order, in batches of about so many bytes. UserError when the file is damaged."""
    decode: Callable[[bytes, Fields], Document | None]
    """The document of a record; None: it has none, by its nature or by the fields. BadRecordError: it should have."""
    place: Callable[[Span, int], str]
    """Where record number n of a span, from 0, is, in words: `line 12`."""
    parts: Callable[[bytes, Fields], Iterator[str]] | None = None
    """The text of a record's document in parts of about PART bytes, so that little beside the record is held.

    ValueError or BadRecordError: it has none, or `decode` should say what is wrong with it."""
    first_records: Callable[[bytes, int], list[bytes]] | None = None
    """Of the head of a long file, the whole records that begin in so many bytes; None: the head alone says nothing."""
    is_one_text: bool = False
    """Whether a file is one document, its text as it stands."""
    is_compressible: bool = True
    """Whether .gz, .bz2, .xz or .zst may follow the suffix."""
    has_fields: bool = False
    """Whether records have named fields."""
    has_tokens: bool = False
    """Whether documents are token ids and not text."""


def batched(span: Span, records: Iterable[tuple[int, bytes]], batch_bytes: int) -> Iterator[Batch]:
    """Batches of about `batch_bytes` of the records that lie in the span, each given with its position."""
    waiting: list[bytes] = []
    first = size = 0
    for position, record in records:
        if span.is_before(position):
            break
        if not span.holds(position):
            continue
        waiting.append(record)
        size += len(record)
        if size >= batch_bytes:
            batch = Batch(span, first, waiting)
            first, size, waiting = first + len(waiting), 0, []
            yield batch
    if waiting:
        yield Batch(span, first, waiting)


def decode_utf8(record: bytes) -> str:
    """Text of bytes. BadRecordError names the first byte that is none."""
    try:
        return record.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecordError(f"not UTF-8 (byte 0x{record[error.start]:02x} at {error.start})") from error


def text_parts(record: bytes, fields: Fields) -> Iterator[str]:
    """The text of a record that is nothing else, in parts. UnicodeDecodeError: it is none."""
    return decoded_utf8(record[start : start + PART] for start in range(0, len(record), PART))


def decoded_utf8(blocks: Iterable[bytes]) -> Iterator[str]:
    """As `decode_utf8` makes text of bytes that come in blocks. UnicodeDecodeError: they are none."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    for block in blocks:
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)
