"""Zip archives: each file in them is a document."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from neox.config.errors import UserError
from neox.data.formats.contract import Batch, Fields, Format, Span, batched, decode_utf8, text_parts


def length(path: Path) -> int:
    """Bytes."""
    return path.stat().st_size


def batches(span: Span, fields: Fields, batch_bytes: int) -> Iterator[Batch]:
    """Files; a position is the byte where the head of one begins."""
    return batched(span, ((position, content) for position, _, content in _files(span)), batch_bytes)


def decode(record: bytes, fields: Fields) -> str:
    """The text."""
    return decode_utf8(record)


def place(span: Span, number: int) -> str:
    """The name of the file in the archive."""
    return next(name for index, (_, name, _) in enumerate(_files(span)) if index == number)


def _files(span: Span) -> Iterator[tuple[int, str, bytes]]:
    try:
        with zipfile.ZipFile(span.path) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
                if not info.is_dir() and span.holds(info.header_offset):
                    yield info.header_offset, info.filename, archive.read(info)
    except OSError as error:
        raise UserError(f"{span.path}: {error.strerror}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{span.path}: cannot be read, the file is damaged or no plain zip ({error})") from error


FORMAT = Format((".zip",), length, batches, decode, place, parts=text_parts, is_compressible=False)
