"""Compressed files as streams of bytes: cut or damaged ones end in one line that names them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from neox.config.errors import UserError

BLOCK = 1 << 20
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSIONS = (*OPENERS, ".zst")
FEED = 4096
"""Bytes of zstd that are decompressed at a time: four may stand for 128 KiB, so that they become 128 MiB at most."""


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, plain or compressed as its last suffix says, for reading. UserError when that is not possible."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if path.suffix in COMPRESSIONS and not raw.peek(1):  # for which gzip and zstd would give no bytes, and no error
        raise UserError(f"{path}: cannot be decompressed, the file is damaged or truncated (it is empty)")
    return decompressed(raw, path.suffix)


def decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    """What a stream holds, compressed as the suffix of its name says; closing it closes both."""
    if suffix in OPENERS:
        return _Closing(OPENERS[suffix](raw, "rb"), raw)
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdStream(raw), BLOCK))
    return raw


class _Closing(io.BufferedReader):
    """gzip, bz2 and lzma leave the file that they were given open."""

    def __init__(self, stream: Any, below: BinaryIO) -> None:
        super().__init__(stream, BLOCK)
        self._below = below

    def close(self) -> None:
        super().close()
        self._below.close()


class _ZstdStream(io.RawIOBase):
    """zstandard's own stream reader ends quietly where the file is cut; this one raises EOFError, as gzip does.

    Nor does it hold all that a few bytes of a bomb expand to.
    """

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


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns what a damaged or cut file raises into a UserError."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path}: {error.strerror}") from error
        raise UserError(f"{path}: cannot be decompressed, the file is damaged or truncated ({error})") from error


def blocks(file: BinaryIO, length: int | None = None) -> Iterator[bytes]:
    """The next `length` bytes, or all; fewer where the file ends."""
    left = length
    while left is None or left > 0:
        block = file.read(BLOCK if left is None else min(left, BLOCK))
        if not block:
            return
        yield block
        left = None if left is None else left - len(block)


def exactly(file: BinaryIO, size: int) -> bytes:
    """The next bytes, however many a damaged file may say there are. EOFError when there are fewer."""
    found = b"".join(blocks(file, size))
    if len(found) < size:
        raise EOFError("it ends before what it announces")
    return found


def plain_length(path: Path) -> int:
    """Bytes of a file after decompression, which is done for it."""
    if path.suffix not in COMPRESSIONS:
        return path.stat().st_size
    with open_bytes(path) as file, damage_named(path):
        return sum(map(len, blocks(file)))
