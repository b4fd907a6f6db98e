"""TFRecords of token ids, as GPT-Neo writes them: tf.train.Example with the ids as the int64_list `text`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from neox.config.errors import UserError
from neox.data import protobuf
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
        entries = protobuf.fields(protobuf.single(content, 1)).get(1, [])  # Example.features.feature, a map
        features = {
            protobuf.single(entry, 1).decode(): protobuf.single(entry, 2)
            for entry in entries
            if isinstance(entry, bytes)
        }
        if fields.key not in features:
            raise BadRecordError(f"no feature '{fields.key}', only {sorted(features)}")
        if 3 not in protobuf.fields(features[fields.key]):
            raise BadRecordError(f"feature '{fields.key}' must be a list of integers")
        values = protobuf.fields(protobuf.single(features[fields.key], 3)).get(1, [])  # Int64List.value
        ids = [np.array([part]) if isinstance(part, int) else protobuf.varints(part) for part in values]
        return np.concatenate([np.zeros(0, np.int64), *ids])
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


FORMAT = Format((".tfrecords", ".tfrecord"), plain_length, batches, decode, place, has_fields=True, has_tokens=True)
