"""TFRecords of token ids, as GPT-Neo writes them: tf.train.Example with the ids as the int64_list `text`."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from neox.config.errors import UserError
from neox.data.formats.compression import damage_named, exactly, open_bytes, plain_length
from neox.data.formats.contract import BadRecordError, Batch, Fields, Format, Span, batched

HEAD = struct.Struct("<QI")  # length of the record and the checksum of these 8 bytes
CHECKSUM = struct.Struct("<I")
EXAMPLE = [
    {"name": "Int64List", "field": [{"name": "value", "number": 1, "label": "LABEL_REPEATED", "type": "TYPE_INT64"}]},
    {"name": "Feature", "field": [{"name": "int64_list", "number": 3, "type_name": "Int64List"}]},
    {
        "name": "Entry",
        "field": [
            {"name": "key", "number": 1, "type": "TYPE_STRING"},
            {"name": "value", "number": 2, "type_name": "Feature"},
        ],
    },
    {"name": "Features", "field": [{"name": "feature", "number": 1, "label": "LABEL_REPEATED", "type_name": "Entry"}]},
    {"name": "Example", "field": [{"name": "features", "number": 1, "type_name": "Features"}]},
]
"""tf.train.Example on the wire, of a feature's three kinds of lists the one of integers."""


def batches(span: Span, fields: Fields, batch_bytes: int) -> Iterator[Batch]:
    """Records with their checksums behind them; a position is the decompressed byte where one begins."""
    return batched(span, _records(span), batch_bytes)


def place(span: Span, number: int) -> str:
    """Counted from the beginning of the file."""
    before = sum(1 for position, _ in _records(Span(span.path, span.format)) if position < span.start)
    return f"record {before + number + 1}"


def decode(record: bytes, fields: Fields) -> np.ndarray[Any, Any]:
    """[n] int64 ids of the feature `fields.key`."""
    from google.protobuf.message import DecodeError

    content, (checksum,) = record[: -CHECKSUM.size], CHECKSUM.unpack(record[-CHECKSUM.size :])
    if _checksum(content) != checksum:
        raise BadRecordError("its checksum differs, the record is damaged")
    try:
        example = _example_type().FromString(content)
    except DecodeError as error:
        raise BadRecordError(f"no tf.train.Example ({error})") from error
    features = {entry.key: entry.value for entry in example.features.feature}
    if fields.key not in features:
        raise BadRecordError(f"no feature '{fields.key}', only {sorted(features)}")
    if not features[fields.key].HasField("int64_list"):
        raise BadRecordError(f"feature '{fields.key}' must be a list of integers")
    return np.array(features[fields.key].int64_list.value, np.int64)


@functools.cache
def _example_type() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptor_pb2.FileDescriptorProto(name="example.proto", syntax="proto3", message_type=EXAMPLE))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))


def _checksum(content: bytes) -> int:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return int(masked_crc32c(content))


def _records(span: Span) -> Iterator[tuple[int, bytes]]:
    position = 0
    with open_bytes(span.path) as file, damage_named(span.path):
        while head := file.read(HEAD.size):
            size, checksum = HEAD.unpack(head) if len(head) == HEAD.size else (0, -1)
            if _checksum(head[:8]) != checksum:
                raise UserError(f"{span.path}: no record at byte {position}, the file is damaged or no TFRecord")
            record = exactly(file, size + CHECKSUM.size)
            yield position, record
            position += HEAD.size + len(record)


FORMAT = Format((".tfrecords", ".tfrecord"), plain_length, batches, decode, place, has_fields=True, has_tokens=True)
