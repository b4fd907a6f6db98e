"""zstd files as streams: what is cut short is said, and what a few bytes expand to never fills the memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

BUFFER = 1 << 20
FEED = 4096
"""Bytes that are decompressed at a time. A block of 128 KiB may be 4 bytes long: they become 128 MiB at most."""


def open_zstd(path: Path) -> BinaryIO:
    """What a .zst file holds, one frame or several; EOFError where it is cut."""
    return cast(BinaryIO, io.BufferedReader(_ZstdStream(path.open("rb")), BUFFER))


class _ZstdStream(io.RawIOBase):
    """zstandard's own stream reader ends quietly where the file is cut; this one raises EOFError, as gzip does."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._pending = memoryview(b"")
        self._is_inside = False

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        while not self._pending:
            compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._is_inside = False
            compressed = compressed or self._raw.read(FEED)
            if not compressed:
                if self._is_inside:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                return 0
            self._is_inside = True
            self._pending = memoryview(self._frame.decompress(compressed))
        count = min(len(target), len(self._pending))
        target[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
