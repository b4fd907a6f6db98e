"""JSON-lines text, plain or compressed: shards by position, batches of lines, errors that name file and line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from neox.config.errors import UserError

BATCH_BYTES = 1 << 20
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = {*OPENERS, ".zst"}


class BadLineError(Exception):
    """A line that holds no document: its index in the batch, and why."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)
        self.index = index
        self.reason = reason


@dataclass(frozen=True)
class Span:
    """The lines whose first byte, counted after decompression, lies in [start, stop); stop None: to the end."""

    path: Path
    start: int
    stop: int | None


@dataclass(frozen=True)
class Batch:
    """Consecutive whole lines of one file, and where, after decompression, the first one begins."""

    path: Path
    offset: int
    lines: list[bytes]

    def error(self, bad: BadLineError) -> UserError:
        """The line's number is only counted here, so that shards need not read what lies before them."""
        with open_lines(self.path) as file:
            before = sum(block.count(b"\n") for block in _read_blocks(file, self.offset))
        return UserError(f"{self.path}, line {before + bad.index + 1}: {bad.reason}")


def open_lines(path: Path) -> BinaryIO:
    """Open a .jsonl, .gz, .bz2, .xz or .zst file for reading bytes of text. UserError when it is missing."""
    try:
        if path.suffix in OPENERS:
            return cast(BinaryIO, OPENERS[path.suffix](path, "rb"))
        raw = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdStream(raw), BATCH_BYTES))
    return raw


class _ZstdStream(io.RawIOBase):
    """zstandard's own stream reader ends quietly where the file is cut; this one raises EOFError, as gzip does."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._pending = b""
        self._is_inside = False

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        while not self._pending:
            compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._is_inside = False
            compressed = compressed or self._raw.read(BATCH_BYTES // 4)
            if not compressed:
                if self._is_inside:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                return 0
            self._is_inside = True
            self._pending = self._frame.decompress(compressed)
        count = min(len(target), len(self._pending))
        target[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def shard_spans(paths: Sequence[Path], index: int, count: int) -> list[Span]:
    """Part `index` of `count` of the files taken end to end; the parts hold every line once, in order.

    Parts are equal in bytes on disk. Only a compressed file that a boundary cuts is decompressed to find its length.
    """
    sizes = [_size_on_disk(path) for path in paths]
    total = sum(sizes)
    first, last = total * index // count, total * (index + 1) // count
    spans = []
    begin = 0
    for path, size in zip(paths, sizes, strict=True):
        start, stop = max(first - begin, 0), min(last - begin, size)
        begin += size
        if start >= stop:
            continue
        is_cut = (start, stop) != (0, size)
        if is_cut and path.suffix in COMPRESSED:
            length = _text_length(path)
            start, stop = start * length // size, stop * length // size
        spans.append(Span(path, start, stop if is_cut else None))
    return spans


def batches(span: Span, batch_bytes: int = BATCH_BYTES) -> Iterator[Batch]:
    """The lines of a span in batches of about `batch_bytes`. UserError when the file cannot be decompressed."""
    with open_lines(span.path) as file, _damage_named(span.path):
        offset = _seek_line(file, span)
        while span.stop is None or offset < span.stop:
            lines = file.readlines(batch_bytes)
            if not lines:
                return
            if span.stop is not None:
                lines = _lines_before(lines, span.stop - offset)
            yield Batch(span.path, offset, lines)
            offset += sum(map(len, lines))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path}: {error.strerror}") from error
        raise UserError(f"{path}: cannot be decompressed, the file is damaged or truncated ({error})") from error


def parse_texts(lines: list[bytes], key: str) -> list[str]:
    """The text of each line that is not blank. BadLineError when one is not a JSON object with a string under `key`."""
    texts = []
    for index, line in enumerate(lines):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadLineError(index, f"not JSON ({error})") from error
        if not isinstance(record, dict):
            raise BadLineError(index, f"not a JSON object but {type(record).__name__}")
        if key not in record:
            raise BadLineError(index, f"no key '{key}', only {sorted(record)}")
        text = record[key]
        if not isinstance(text, str):
            raise BadLineError(index, f"the value of '{key}' must be a string, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadLineError(
                index, f"the text of '{key}' holds half a surrogate pair, which UTF-8 cannot hold"
            ) from error
        texts.append(text)
    return texts


def read_texts(paths: Sequence[Path], key: str = "text") -> Iterator[str]:
    """Every document of some files, in order. UserError when a line is wrong, or when there is no document."""
    is_empty = True
    for path in paths:
        for batch in batches(Span(path, 0, None)):
            try:
                texts = parse_texts(batch.lines, key)
            except BadLineError as bad:
                raise batch.error(bad) from None
            yield from texts
            is_empty = is_empty and not texts
    if is_empty:
        raise no_document(paths)


def first_texts(paths: Sequence[Path], key: str, sample_bytes: int = 1 << 19) -> Iterator[str]:
    """The first documents of up to 64 of the files, evenly chosen; each file gives its share of `sample_bytes`.

    A file's first wrong line ends its share: the whole reading will name it.
    """
    chosen = paths[:: -(-len(paths) // 64) or 1]
    for path in chosen:
        share = sample_bytes // len(chosen)
        first = next(batches(Span(path, 0, None), share), None)
        for line in first.lines if first else []:
            try:
                texts = parse_texts([line], key)
            except BadLineError:
                break
            yield from (text[:share] for text in texts)


def no_document(paths: Sequence[Path]) -> UserError:
    """What to raise for a corpus without a document."""
    return UserError(f"{', '.join(map(str, paths))}: no document, only blank lines")


def _size_on_disk(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _read_blocks(file: BinaryIO, length: int | None) -> Iterator[bytes]:
    left = length
    while left is None or left > 0:
        block = file.read(BATCH_BYTES if left is None else min(left, BATCH_BYTES))
        if not block:
            return
        yield block
        left = None if left is None else left - len(block)


def _text_length(path: Path) -> int:
    with open_lines(path) as file, _damage_named(path):
        return sum(map(len, _read_blocks(file, None)))


def _seek_line(file: BinaryIO, span: Span) -> int:
    """Move to the first line that begins at or after the span's start; returns its offset."""
    if span.start == 0:
        return 0
    if span.path.suffix == ".zst":
        for _ in _read_blocks(file, span.start - 1):
            pass
    else:
        file.seek(span.start - 1)
    return span.start - 1 + len(file.readline())


def _lines_before(lines: list[bytes], limit: int) -> list[bytes]:
    """The lines that begin before byte `limit` of the first."""
    begin = 0
    for index, line in enumerate(lines):
        if begin >= limit:
            return lines[:index]
        begin += len(line)
    return lines
