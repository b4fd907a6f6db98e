"""Tar archives, plain or compressed: each file in them is a document, or holds JSON lines."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from neox.config.errors import UserError
from neox.data.formats import lines, text
from neox.data.formats.compression import COMPRESSIONS, damage_named, decompressed, exactly, open_bytes, plain_length
from neox.data.formats.contract import Batch, Fields, Format, Span, batched

BLOCK = tarfile.BLOCKSIZE
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


def _format(members: Format, *suffixes: str) -> Format:
    """A tar whose files are `members`; a position is the decompressed byte where the head of a file begins."""

    def batches(span: Span, fields: Fields, batch_bytes: int) -> Iterator[Batch]:
        records = ((position, record) for position, _, record in _records(span, members))
        return batched(span, records, batch_bytes)

    def place(span: Span, number: int) -> str:
        """The name of the file in the archive, and the line of it where there are lines."""
        at, before = "", 0
        for index, (_, name, _) in enumerate(_records(span, members)):
            if name != at:
                at, before = name, index
            if index == number:
                break
        return f"{at}, line {number - before + 1}" if members is lines.FORMAT else at

    return Format(suffixes, plain_length, batches, members.decode, place, members.parts, has_fields=members.has_fields)


def _records(span: Span, members: Format) -> Iterator[tuple[int, str, bytes]]:
    """Position, name and bytes of each record in the span, as a stream."""
    with open_bytes(span.path) as file, damage_named(span.path):
        for position, name, content in _files(file, span):
            if members is lines.FORMAT:
                inside = decompressed(cast(BinaryIO, io.BufferedReader(content)), Path(name).suffix)
                yield from ((position, name, line) for line in inside)
            elif lines.SUFFIXES & {Path(name).suffix, Path(Path(name).stem).suffix}:
                raise UserError(f"{span.path}: {name} in it holds JSON lines: read it with --format jsonl.tar")
            else:
                yield position, name, content.read()


TEXTS = _format(text.FORMAT, ".tar", ".tgz", ".tbz2", ".txz")
LINES = _format(lines.FORMAT, ".jsonl.tar", *(f".jsonl{suffix}.tar" for suffix in COMPRESSIONS))


class _Content(io.RawIOBase):
    """The bytes of one file in a stream that goes on behind them."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        block = self._file.read(min(len(target), self.left))
        if not block and self.left:
            raise EOFError("ended inside a file of the archive")
        target[: len(block)] = block
        self.left -= len(block)
        return len(block)


def _files(file: BinaryIO, span: Span) -> Iterator[tuple[int, str, _Content]]:
    """Position, name and content of each regular file in the span.

    Not with tarfile's own reader, which takes a damaged or cut head behind the first for the end of the archive.
    """
    position, size_given, name_given = 0, None, ""
    while (head := exactly(file, BLOCK)) != bytes(BLOCK):
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise UserError(f"{span.path}: no head of a file at byte {position}, damaged ({error})") from error
        size = info.size if size_given is None else size_given
        if size < 0:
            raise UserError(f"{span.path}: a file of {size} bytes at byte {position}, damaged")
        begin, position = position, position + BLOCK + -(-size // BLOCK) * BLOCK
        content = _Content(file, size)
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            size_given, name_given = _extended(content.read(), span.path)
            _skip(file, -size % BLOCK)
            continue
        if info.type == tarfile.GNUTYPE_LONGNAME:
            name_given = content.read().rstrip(b"\0").decode("utf-8", "replace")
        elif info.type in FILES and span.is_before(begin):
            return
        elif info.type in FILES and span.holds(begin):
            yield begin, name_given or info.name, content
        if info.type != tarfile.GNUTYPE_LONGNAME:
            size_given, name_given = None, ""
        _skip(file, content.left + -size % BLOCK)


def _extended(records: bytes, path: Path) -> tuple[int | None, str]:
    """Size and name that a POSIX header of records `length key=value` gives the next file."""
    values: dict[bytes, bytes] = {}
    try:
        while records:
            count = int(records.partition(b" ")[0])
            key, _, value = records[: max(count, 1)].partition(b" ")[2].rstrip(b"\n").partition(b"=")
            values[key], records = value, records[max(count, 1) :]
        size = int(values[b"size"]) if b"size" in values else None
    except ValueError as error:
        raise UserError(f"{path}: an extended head in it cannot be read, the file is damaged ({error})") from error
    return size, values.get(b"path", b"").decode("utf-8", "replace")


def _skip(file: BinaryIO, size: int) -> None:
    while size:
        size -= len(exactly(file, min(size, 1 << 20)))
