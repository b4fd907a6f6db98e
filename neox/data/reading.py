"""Reading a corpus: files of any format as documents, dealt to shards, with what is broken counted and located."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from neox.config.errors import UserError
from neox.data.formats.compression import blocks, damage_named, open_bytes
from neox.data.formats.contract import BadRecordError, Batch, Condition, Document, Fields, Span
from neox.data.formats.registry import FORMATS, format_of, guess

BATCH_BYTES = 1 << 20
LEAST_SAMPLED, MOST_SAMPLED = 1 << 16, 1 << 19
"""Bytes of a corpus that both engines encode: between them 1/256 of it, a tenth of the fast engine's time."""
MOST_LOCATED = 20
"""Broken records whose place is told; finding it may mean reading what lies before."""


@dataclass(frozen=True)
class Reading:
    """Which documents a corpus has. All that read it must agree on this, or their numbers of documents differ."""

    format: str = "auto"
    """One of FORMATS in neox.data.formats.registry, or auto: by each file's suffix."""
    key: str = "text"
    """Field that keeps the text; a name with dots goes down objects."""
    where: tuple[str, ...] = ()
    """`field=value` or `field!=value`: records of which one does not hold are left out."""
    ftfy: bool = False
    """Whether ftfy repairs each text, as GPT-NeoX's --ftfy does."""
    min_length: int = 1
    """Characters of the shortest document that is taken; GPT-NeoX leaves out the empty ones."""
    is_lenient: bool = False
    """Whether broken records are left out, counted; otherwise the first ends the reading."""

    def fields(self) -> Fields:
        """What the formats need to know of it."""
        return Fields(self.key, tuple(map(_condition, self.where)))


@dataclass(frozen=True)
class Parsed:
    """The documents of a batch, and what of it is none."""

    documents: list[Document]
    broken: list[tuple[int, str]]
    """Number in the batch, and why."""
    num_left_out: int
    """Blank, too short, or not wanted."""


@dataclass
class Losses:
    """What a reading left out."""

    is_lenient: bool
    left_out: int = 0
    broken: int = 0
    first_broken: list[str] = field(default_factory=list)
    """Files and places of the first ones."""

    def count(self, batch: Batch, parsed: Parsed) -> None:
        """Add a batch's. UserError for the first that is broken, unless the reading is lenient."""
        self.left_out += parsed.num_left_out
        self.broken += len(parsed.broken)
        for number, reason in parsed.broken[: MOST_LOCATED - len(self.first_broken)]:
            span = batch.span
            line = f"{span.path}, {FORMATS[span.format].place(span, batch.first + number)}: {reason}"
            if not self.is_lenient:
                raise UserError(line)
            self.first_broken.append(line)

    def tell(self) -> None:
        """On stderr, where records were broken."""
        if self.broken:
            print(f"neox: {self.broken} broken records left out, the first: {self.first_broken[0]}", file=sys.stderr)


def files(inputs: Sequence[Path], reading: Reading) -> list[tuple[Path, str]]:
    """Files and their formats; a folder stands for all files below it whose suffix is known, in the order of names.

    UserError when an option does not fit a format.
    """
    found = []
    for path in inputs:
        found += _below(path, reading.format) if path.is_dir() else [(path, format_of(path, reading.format))]
    for path, name in found:
        _check(path, name, reading)
    return found


def _below(folder: Path, wanted: str) -> list[tuple[Path, str]]:
    below = (path for path in sorted(folder.rglob("*")) if path.is_file())
    visible = [path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    taken = [(path, name) for path in visible if (name := guess(path) if wanted == "auto" else wanted)]
    if len(taken) < len(visible):
        first = next(path for path in visible if guess(path) is None)
        missed = len(visible) - len(taken)
        print(f"neox: {folder}: {missed} files of no known suffix are not read, such as {first}", file=sys.stderr)
    if not taken:
        raise UserError(f"{folder}: no file in it has the suffix of a known format; say --format")
    return taken


def _check(path: Path, name: str, reading: Reading) -> None:
    format = FORMATS[name]
    fields = [f"--where {reading.where[0]}"] if reading.where else []
    fields += [f"--key {reading.key}"] if reading.key != "text" else []
    if fields and not format.has_fields:
        raise UserError(f"{fields[0]}: {path} is read as {name}, whose records have no fields")
    texts = ["--ftfy"] if reading.ftfy else []
    texts += [f"--min-length {reading.min_length}"] if reading.min_length > 1 else []
    texts += fields[:1] if reading.where else []
    if texts and format.has_tokens:
        raise UserError(f"{texts[0]}: {path} holds token ids and no text")


def _condition(text: str) -> Condition:
    name, equals, value = text.partition("=")
    if not equals or not name.removesuffix("!"):
        raise UserError(f"--where {text}: must be FIELD=VALUE or FIELD!=VALUE")
    return Condition(name.removesuffix("!"), value, not name.endswith("!"))


def shard_spans(found: Sequence[tuple[Path, str]], index: int, count: int) -> list[Span]:
    """Part `index` of `count` of the files taken end to end; the parts hold every record once, in order.

    Parts are equal in bytes on disk. Only a compressed file that a border cuts is decompressed to find its length.
    """
    sizes = [size_on_disk(path) for path, _ in found]
    total = sum(sizes)
    first, last = total * index // count, total * (index + 1) // count
    spans = []
    begin = 0
    for (path, name), size in zip(found, sizes, strict=True):
        start, stop = max(first - begin, 0), min(last - begin, size)
        begin += size
        if size == 0:
            _check_empty(path, name)
        if start >= stop:
            continue
        is_cut = (start, stop) != (0, size)
        if is_cut:
            length = FORMATS[name].length(path)
            start, stop = start * length // size, stop * length // size
        spans.append(Span(path, name, start, stop if is_cut else None))
    return spans


def _check_empty(path: Path, name: str) -> None:
    """UserError unless a file of that format may have no bytes: most are what is left of a broken transfer."""
    for _ in FORMATS[name].batches(Span(path, name), Fields(), BATCH_BYTES):
        pass


def batches(span: Span, reading: Reading) -> Iterator[Batch]:
    """The records of a span. UserError when the file is damaged."""
    return FORMATS[span.format].batches(span, reading.fields(), BATCH_BYTES)


def parse(name: str, records: Sequence[bytes], reading: Reading, vocab_size: int | None = None) -> Parsed:
    """The documents of records of the format `name`; token ids must be below `vocab_size`."""
    decode, fields = FORMATS[name].decode, reading.fields()
    documents: list[Document] = []
    broken = []
    for number, record in enumerate(records):
        try:
            document = decode(record, fields)
            if isinstance(document, str):
                document = _taken(document, reading)
            elif document is not None and vocab_size:
                _check_ids(document, vocab_size)
        except BadRecordError as bad:
            broken.append((number, str(bad)))
            continue
        if document is not None:
            documents.append(document)
    return Parsed(documents, broken, len(records) - len(documents) - len(broken))


def _taken(text: str, reading: Reading) -> str | None:
    repaired = _repaired(text) if reading.ftfy else text
    return repaired if len(repaired) >= reading.min_length else None


def _check_ids(ids: np.ndarray[Any, Any], vocab_size: int) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise BadRecordError(f"ids from {ids.min()} to {ids.max()}, but the tokenizer has 0 to {vocab_size - 1}")


def _repaired(text: str) -> str:
    try:
        import ftfy
    except ImportError:
        raise UserError("--ftfy: the package ftfy is not installed") from None
    return str(ftfy.fix_text(text))


def read_texts(inputs: Sequence[Path], reading: Reading) -> Iterator[str]:
    """Every document of a corpus, in order. UserError when a record is broken, or when there is no document."""
    losses, is_empty = Losses(reading.is_lenient), True
    for path, name in files(inputs, reading):
        if FORMATS[name].has_tokens:
            raise UserError(f"{path}: holds token ids, and text is needed here")
        for batch in batches(Span(path, name), reading):
            parsed = parse(name, batch.records, reading)
            losses.count(batch, parsed)
            yield from map(str, parsed.documents)
            is_empty = is_empty and not parsed.documents
    losses.tell()
    if is_empty:
        raise no_document(inputs)


def first_texts(spans: Sequence[Span], reading: Reading, most_bytes: int = MOST_SAMPLED) -> Iterator[str]:
    """The first documents of up to 64 of the files, evenly chosen, that together hold a small share of all bytes.

    A file's first broken record ends its share: the whole reading will name it.
    """
    with_text = [span for span in spans if not FORMATS[span.format].has_tokens]
    sample_bytes = min(max(sum(size_on_disk(span.path) for span in with_text) // 256, LEAST_SAMPLED), most_bytes)
    chosen = with_text[:: -(-len(with_text) // 64) or 1]
    for span in chosen:
        share = sample_bytes // len(chosen)
        head = _head(span)
        records = _first_records(span, head, reading, share)
        if head and not records:
            yield head.decode(errors="ignore")[:share]
        for record in records:
            parsed = parse(span.format, [record], reading)
            if parsed.broken:
                break
            yield from (str(text)[:share] for text in parsed.documents)


def _head(span: Span) -> bytes:
    """The first bytes of a file of text that has more of them: what is long need not be read to its end."""
    format = FORMATS[span.format]
    if not format.is_one_text and format.first_records is None:
        return b""
    with open_bytes(span.path) as file, damage_named(span.path):
        head = b"".join(blocks(file, BATCH_BYTES))
    return head if len(head) == BATCH_BYTES else b""


def _first_records(span: Span, head: bytes, reading: Reading, num_bytes: int) -> list[bytes]:
    """Of a long text, or one that begins with a long line, none."""
    format = FORMATS[span.format]
    if head:
        return format.first_records(head, num_bytes) if format.first_records else []
    whole = format.batches(Span(span.path, span.format), reading.fields(), num_bytes)
    return [record for batch in islice(whole, 1) for record in batch.records]


def no_document(inputs: Sequence[Path]) -> UserError:
    """What to raise for a corpus without a document."""
    return UserError(f"{', '.join(map(str, inputs))}: no document, only records that are blank, broken or left out")


def size_on_disk(path: Path) -> int:
    """Bytes of a file. UserError when there is none."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
