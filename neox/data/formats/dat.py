"""lm_dataformat's DatArchive: each document behind its length in 16 digits, zstandard around the whole."""

from __future__ import annotations

from collections.abc import Iterator

from neox.config.errors import UserError
from neox.data.formats.compression import damage_named, exactly, open_bytes, plain_length
from neox.data.formats.contract import Batch, Fields, Format, Span, batched, decode_utf8, text_parts

HEAD = 16


def batches(span: Span, fields: Fields, batch_bytes: int) -> Iterator[Batch]:
    """Documents; a position is the decompressed byte where the digits begin."""
    return batched(span, _documents(span), batch_bytes)


def decode(record: bytes, fields: Fields) -> str:
    """The text."""
    return decode_utf8(record)


def place(span: Span, number: int) -> str:
    """Counted from the beginning of the file."""
    before = sum(1 for position, _ in _documents(Span(span.path, span.format)) if position < span.start)
    return f"document {before + number + 1}"


def _documents(span: Span) -> Iterator[tuple[int, bytes]]:
    position = 0
    with open_bytes(span.path) as file, damage_named(span.path):
        while head := file.read(HEAD):
            if len(head) < HEAD or not head.isdigit():
                raise UserError(f"{span.path}: no document's length at byte {position}, the file is damaged")
            document = exactly(file, int(head))
            yield position, document
            position += HEAD + len(document)


FORMAT = Format((".dat",), plain_length, batches, decode, place, parts=text_parts)
