"""TFRecords of token ids, as GPT-Neo writes them: tf.train.Example with the ids as the int64_list `text`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from neox.config.errors import UserError
from neox.data.formats.compression import damage_named, exactly, open_bytes, plain_length
from neox.data.formats.contract import BadRecordError, Batch, Fields, Format, Span, batched

HEAD = struct.Struct("<QI")  # length of the record and the checksum of these 8 bytes
CHECKSUM = struct.Struct("<I")


def batches(span: Span, fields: Fields, batch_bytes: int) -> Iterator[Batch]:
    """Records with their checksums behind them; a position is the decompressed byte where one begins."""
    return batched(span, _records(span), batch_bytes)


def place(span: Span, number: int) -> str:
    """Counted from the beginning of the file."""
    before = sum(1 for position, _ in _records(Span(span.path, span.format)) if position < span.start)
    return f"record {before + number + 1}"


def decode(record: bytes, fields: Fields) -> np.ndarray[Any, Any]:
    """[n] int64 ids of the feature `fields.key`."""
    content, (checksum,) = record[: -CHECKSUM.size], CHECKSUM.unpack(record[-CHECKSUM.size :])
    if masked_crc32c(content) != checksum:
        raise BadRecordError("its checksum differs, the record is damaged")
    try:
        features = {
            _only(entry, 1).decode(): _only(entry, 2)
            for message in _fields(content).get(1, [])  # Example.features
            for entry in _fields(message).get(1, [])  # Features.feature, a map
        }
        if fields.key not in features:
            raise BadRecordError(f"no feature '{fields.key}', only {sorted(features)}")
        feature = _fields(features[fields.key])
        if 3 not in feature:  # Feature.int64_list
            raise BadRecordError(f"feature '{fields.key}' must be a list of integers")
        values = _fields(feature[3][0]).get(1, [])
        return np.concatenate([np.zeros(0, np.int64), *map(_varints, values)])
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise BadRecordError(f"no tf.train.Example ({error})") from error


def masked_crc32c(content: bytes) -> int:
    """Castagnoli's checksum, rotated and shifted as TFRecords keep it (tensorflow core/lib/hash/crc32c.h)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = tuple(map(_table_entry, range(256)))


def _records(span: Span) -> Iterator[tuple[int, bytes]]:
    position = 0
    with open_bytes(span.path) as file, damage_named(span.path):
        while head := file.read(HEAD.size):
            size, checksum = HEAD.unpack(head) if len(head) == HEAD.size else (0, -1)
            if masked_crc32c(head[:8]) != checksum:
                raise UserError(f"{span.path}: no record at byte {position}, the file is damaged or no TFRecord")
            record = exactly(file, size + CHECKSUM.size)
            yield position, record
            position += HEAD.size + len(record)


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """The parts of a protocol buffer by field number; numbers (wire type 0) as the bytes of their varint."""
    found: dict[int, list[bytes]] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        begin = at
        value, at = _varint(message, at)
        if tag & 7 == 2:
            begin, at = at, at + value
        elif tag & 7:
            raise ValueError(f"wire type {tag & 7}")
        if at > len(message):
            raise ValueError("cut")
        found.setdefault(tag >> 3, []).append(message[begin:at])
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a byte, and where the next thing does."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varints(packed: bytes) -> np.ndarray[Any, Any]:
    """[n] int64 numbers that lie end to end, all at once."""
    parts = np.frombuffer(packed, np.uint8)
    if len(parts) == 0 or parts[-1] >= 0x80:
        raise ValueError("cut")
    starts = np.concatenate([[0], np.flatnonzero(parts < 0x80)[:-1] + 1])
    places = np.arange(len(parts)) - np.repeat(starts, np.diff(np.append(starts, len(parts))))
    if places.max() > 9:
        raise ValueError("a number of more than 64 bits")
    shifted = (parts & np.uint8(0x7F)).astype(np.uint64) << (7 * places).astype(np.uint64)
    return np.bitwise_or.reduceat(shifted, starts).view(np.int64)


def _only(message: bytes, number: int) -> bytes:
    return _fields(message)[number][-1] if number in _fields(message) else b""


FORMAT = Format((".tfrecords", ".tfrecord"), plain_length, batches, decode, place, has_fields=True, has_tokens=True)
