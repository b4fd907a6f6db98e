"""JSON lines: one record per line, an object that keeps its text under a key."""

from __future__ import annotations

import io
import json
import re
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from neox.data.formats.compression import BLOCK, COMPRESSIONS, blocks, damage_named, open_bytes, plain_length
from neox.data.formats.contract import PART, BadRecordError, Batch, Fields, Format, Span

HALF = "\ud800"
"""Begins what stands for a long string: no text has half of a surrogate pair."""
SUFFIXES = {".jsonl", ".json", ".ndjson"}
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
LONG_STRING = 1 << 16
"""Bytes of a string that is decoded in parts, where the whole record is long."""
WITHIN = re.compile(rb"[ \xc2-\xf4]|(?<!\\)\\u(?![dD])")
"""Where a string goes on with a character: not within an escape, half of a surrogate pair, or the bytes of one."""


def batches(span: Span, fields: Fields, batch_bytes: int) -> Iterator[Batch]:
    """Whole lines; a position is the decompressed byte where a line begins."""
    with open_bytes(span.path) as file, damage_named(span.path):
        offset = _seek_line(file, span)
        first = 0
        while span.stop is None or offset < span.stop:
            lines = _next_lines(file, batch_bytes)
            if not lines:
                return
            if span.stop is not None:
                lines = _lines_before(lines, span.stop - offset)
            batch = Batch(span, first, lines)
            offset += sum(map(len, lines))
            first += len(lines)
            yield batch  # which may be emptied


def _next_lines(file: BinaryIO, num_bytes: int) -> list[bytes]:
    """The lines that begin in the next bytes."""
    lines = io.BytesIO(file.read(num_bytes)).readlines()
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] = _whole_line(file, lines[-1])
    return lines


def _whole_line(file: BinaryIO, begun: bytes = b"") -> bytes:
    """A line to its end; it grows where it is, so that of a long one memory holds no second copy at any time."""
    line = bytearray(begun)
    while not line.endswith(b"\n") and (more := file.readline(BLOCK)):
        line += more
    return cast(bytes, line)


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
    if not _is_wanted(value, fields):
        return None
    return encodable("\n\n".join(_paragraphs(value, fields.key)), f"text of '{fields.key}'")


def parts(record: bytes, fields: Fields) -> Iterator[str]:
    """The text in parts, beside which only the record is held, not what characters of its size take of memory.

    Not where the record should be left out or is broken, which `decode` finds: BadRecordError, ValueError.
    """
    short, long = _shortened(record)
    value = json.loads(short.decode())
    if not isinstance(value, dict) or not _is_wanted(value, fields):
        raise BadRecordError("a string, or not wanted")
    paragraphs = _paragraphs(value, fields.key)
    for number in set(range(len(long))) - {int(each[1:]) for each in paragraphs if each.startswith(HALF)}:
        deque(_string_parts(record, *long[number]), maxlen=0)  # what is not the text must be JSON all the same
    for index, paragraph in enumerate(paragraphs):
        yield "\n\n" if index else ""
        if paragraph.startswith(HALF):
            yield from _string_parts(record, *long[int(paragraph[1:])])
        else:
            yield encodable(paragraph, "paragraph")


def _shortened(record: bytes) -> tuple[bytearray, list[tuple[int, int]]]:
    """The record with HALF and a number in the place of each long string, and where the content of each is."""
    short, long = bytearray(), list[tuple[int, int]]()
    end = 0
    for string in STRING.finditer(record):
        if string.end() - string.start() >= LONG_STRING:
            short += record[end : string.start()] + b'"\\ud800%d"' % len(long)
            long.append((string.start() + 1, string.end() - 1))
            end = string.end()
    short += record[end:]
    if short.lower().count(b"\\ud800") > len(long):
        raise BadRecordError("it has that half of a pair itself")
    return short, long


def _string_parts(record: bytes, start: int, stop: int) -> Iterator[str]:
    """The string that record[start:stop] spells, in parts."""
    while start < stop:
        cut = WITHIN.search(record, start + PART, stop)
        end = cut.start() if cut else stop
        yield encodable(json.loads('"' + record[start:end].decode() + '"'), "text")
        start = end


def _is_wanted(record: dict[str, Any], fields: Fields) -> bool:
    return all(_fits(record, each.field, each.value) == each.is_wanted for each in fields.where)


def _paragraphs(record: dict[str, Any], key: str) -> list[str]:
    """The text under a key, which may be a list of strings. BadRecordError: it is none."""
    text = field(record, key)
    if text is MISSING:
        raise BadRecordError(f"no key '{key}', only {sorted(record)}")
    if isinstance(text, list) and text and all(isinstance(part, str) for part in text):
        return text
    if not isinstance(text, str):
        raise BadRecordError(f"the value of '{key}' must be a string, not {type(text).__name__}")
    return [text]


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
    return span.start - 1 + len(_whole_line(file))


def first_records(head: bytes, num_bytes: int) -> list[bytes]:
    """The lines that begin in the first bytes, of those that end in the head of a file."""
    return _lines_before(io.BytesIO(head[: head.rfind(b"\n") + 1]).readlines(), num_bytes)


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


FORMAT = Format(tuple(SUFFIXES), plain_length, batches, decode, place, parts, first_records, has_fields=True)
