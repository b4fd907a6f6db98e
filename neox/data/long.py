"""Documents too long to be held in many copies: pieces of their text, cut where words end, for any processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from neox.data.cuts import ended_at_cuts
from neox.data.formats.compression import blocks, damage_named, open_bytes
from neox.data.formats.contract import BadRecordError, Batch, Span, decoded_utf8
from neox.data.formats.registry import FORMATS
from neox.data.reading import BATCH_BYTES, Reading, size_on_disk

LONG = BATCH_BYTES
"""Bytes from which on a record, or a file that is one document, is long; of a batch only the last record can be."""


@dataclass(frozen=True)
class Piece:
    """A part of the one document of a batch, which has no record any more."""

    batch: Batch
    text: str
    is_first: bool
    is_last: bool


def divided(batch: Batch, reading: Reading) -> Iterator[Batch | Piece]:
    """The batch, but in pieces its last record if that is long: it is taken from `batch.records`, to be held once."""
    format = FORMATS[batch.span.format]
    if format.parts is None or len(batch.records[-1]) < LONG:
        yield batch
        return
    record = batch.records.pop()
    place = replace(batch, first=batch.first + len(batch.records), records=[])
    if batch.records:
        yield batch
    parts = partial(format.parts, record, reading.fields())
    if _is_document(parts, reading):
        yield from _pieces(place, parts())
    else:
        yield replace(place, records=[record])  # to be counted, or told what is wrong with it, as any other


def divided_file(span: Span, reading: Reading, observe: Callable[[bytes], bytes]) -> Iterator[Piece] | None:
    """The pieces of a long file that is one document, of which no more is held; `observe` sees its bytes.

    None: it is not long, belongs to another shard, or is no document that could be taken.
    """
    if not FORMATS[span.format].is_one_text or not span.holds(0) or size_on_disk(span.path) < LONG:
        return None
    if not _is_document(lambda: decoded_utf8(_blocks(span)), reading):
        return None
    return _pieces(Batch(span, 0, []), decoded_utf8(map(observe, _blocks(span))))


def _blocks(span: Span) -> Iterator[bytes]:
    with open_bytes(span.path) as file, damage_named(span.path):
        yield from blocks(file)


def _is_document(parts: Callable[[], Iterator[str]], reading: Reading) -> bool:
    """Whether the parts make one that is taken: seen to the end before the first of them is written."""
    try:
        return not reading.ftfy and sum(map(len, parts())) >= reading.min_length
    except (ValueError, RecursionError, BadRecordError):
        return False


def _pieces(batch: Batch, parts: Iterable[str]) -> Iterator[Piece]:
    before, is_first = None, True
    for text in ended_at_cuts(parts):
        if before is not None:
            yield Piece(batch, before, is_first, is_last=False)
            is_first = False
        before = text
    assert before is not None
    yield Piece(batch, before, is_first, is_last=True)
