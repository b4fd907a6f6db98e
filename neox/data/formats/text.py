"""Plain text: the whole file is one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from neox.data.formats.compression import damage_named, open_bytes
from neox.data.formats.contract import Batch, Fields, Format, Span, batched, decode_utf8, text_parts


def length(path: Path) -> int:
    """The document is at position 0, the one there is."""
    return 1


def batches(span: Span, fields: Fields, batch_bytes: int) -> Iterator[Batch]:
    """The file, unless another shard has it."""
    if span.holds(0):
        with open_bytes(span.path) as file, damage_named(span.path):
            yield from batched(span, [(0, file.read())], batch_bytes)


def decode(record: bytes, fields: Fields) -> str:
    """The text."""
    return decode_utf8(record)


def place(span: Span, number: int) -> str:
    """There is one."""
    return "the file"


FORMAT = Format(
    (".txt", ".text", ".md", ".rst", ".html"), length, batches, decode, place, parts=text_parts, is_one_text=True
)
