"""Protocol buffers as far as other programs' files need them: the parts of a message by field number."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

Part = int | bytes
"""A number of wire type 0 (varint), or the bytes of any other."""


def fields(message: bytes) -> dict[int, list[Part]]:
    """The parts of a message, in order. ValueError or IndexError when it is none."""
    found: dict[int, list[Part]] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            found.setdefault(tag >> 3, []).append(value)
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(message):
            raise ValueError("cut")
        found.setdefault(tag >> 3, []).append(message[at : at + size])
        at += size
    return found


def single(message: bytes, number: int) -> bytes:
    """The last part of that number; empty where there is none."""
    part = fields(message).get(number, [b""])[-1]
    if not isinstance(part, bytes):
        raise ValueError(f"field {number} is a number")
    return part


def float32(part: Part) -> float:
    """The number in four bytes."""
    if not isinstance(part, bytes) or len(part) != 4:
        raise ValueError("no float")
    return float(struct.unpack("<f", part)[0])


def varints(packed: bytes) -> np.ndarray[Any, Any]:
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


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a byte, and where the next thing does."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
