"""JSON lines: one record per line, an object that keeps its text under a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from neox.data.formats.compression import COMPRESSIONS, blocks, damage_named, open_bytes, plain_length
from neox.data.formats.contract import BadRecordError, Batch, Fields, Format, Span

SUFFIXES = {".jsonl", ".json", ".ndjson"}


def batches(span: Span, fields: Fields, batch_bytes: int) -> Iterator[Batch]:
    """Whole lines; a position is the decompressed byte where a line begins."""
    with open_bytes(span.path) as file, damage_named(span.path):
        offset = _seek_line(file, span)
        first = 0
        while span.stop is None or offset < span.stop:
            lines = file.readlines(batch_bytes)
            if not lines:
                return
            if span.stop is not None:
                lines = _lines_before(lines, span.stop - offset)
            yield Batch(span, first, lines)
            offset += sum(map(len, lines))
            first += len(lines)


def decode(record: bytes, fields: Fields) -> str | None:
    """The text under `fields.key`, its paragraphs joined if it is a list of them; a line that is a string is the text.

    As lm_dataformat reads them. None for a blank line.
    """
    if record.isspace():
        return None
    try:
        value = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"not JSON ({error})") from error
    if isinstance(value, str) and not fields.where:
        return encodable(value, "line")
    if not isinstance(value, dict):
        raise BadRecordError(f"not a JSON object but {type(value).__name__}")
    if not all(_fits(value, condition.field, condition.value) == condition.is_wanted for condition in fields.where):
        return None
    text = field(value, fields.key)
    if text is MISSING:
        raise BadRecordError(f"no key '{fields.key}', only {sorted(value)}")
    if isinstance(text, list) and text and all(isinstance(part, str) for part in text):
        text = "\n\n".join(text)
    if not isinstance(text, str):
        raise BadRecordError(f"the value of '{fields.key}' must be a string, not {type(text).__name__}")
    return encodable(text, f"text of '{fields.key}'")


def place(span: Span, number: int) -> str:
    """The line is only counted here, so that shards need not read what lies before them."""
    return f"line {_lines_up_to(span.path, span.start) + number + 1}"


MISSING = object()


def field(record: dict[str, Any], name: str) -> Any:
    """The value of `name`, or, where `name` has dots, what the objects within hold: meta.source. MISSING: none."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def _fits(record: dict[str, Any], name: str, wanted: str) -> bool:
    value = field(record, name)
    return (value if isinstance(value, str) else json.dumps(None if value is MISSING else value)) == wanted


def encodable(text: str, what: str) -> str:
    """The text; BadRecordError where JSON's escapes make of it what is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecordError(f"the {what} holds half a surrogate pair, which UTF-8 cannot hold") from error
    return text


def _seek_line(file: BinaryIO, span: Span) -> int:
    """Move to the first line that begins at or after the span's start; returns its offset."""
    if span.start == 0:
        return 0
    if span.path.suffix in COMPRESSIONS:
        for _ in blocks(file, span.start - 1):
            pass
    else:
        file.seek(span.start - 1)
    return span.start - 1 + len(file.readline())


@lru_cache
def _lines_up_to(path: Path, start: int) -> int:
    """Lines that begin before byte `start`."""
    if start == 0:
        return 0
    with open_bytes(path) as file, damage_named(path):
        return sum(block.count(b"\n") for block in blocks(file, start - 1)) + 1


def _lines_before(lines: list[bytes], limit: int) -> list[bytes]:
    """The lines that begin before byte `limit` of the first."""
    begin = 0
    for index, line in enumerate(lines):
        if begin >= limit:
            return lines[:index]
        begin += len(line)
    return lines


FORMAT = Format(tuple(SUFFIXES), plain_length, batches, decode, place, has_fields=True)
