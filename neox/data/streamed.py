"""Token files behind a URL (s3, http): the index is fetched once, tokens block by block as they are read, into a cache.

Meant for files whose samples are read nearly in order, as Pythia's pre-shuffled ones: of documents that lie apart, each
costs a block.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from neox.config.errors import UserError
from neox.config.schema import DataConfig
from neox.data.fetch import Download, fetch
from neox.data.indexed import IndexedReader, idx_path
from neox.data.parallel import Version, read_part
from neox.data.remote import TransferError, open_part

BLOCK_BYTES = 1 << 18
"""Of tokens that are fetched at a time."""
ATTEMPTS, BACKOFF_S = 5, 1.0
LOOKS = 64
"""Times that a process looks at the whole cache while it fills it once."""
VERSION = "blocks-"
"""How the folder of a version's blocks begins."""
OPEN_BLOCKS = 64
"""Blocks that a process keeps in memory."""
Array = np.ndarray[Any, Any]


def open_tokens(prefix: str, data: DataConfig) -> IndexedReader:
    """The reader of a token file on this machine, or behind a URL.

    Raises:
        UserError: as of `IndexedReader`; a URL without data.cache_dir, or one that does not give the files.
        OSError: its server does not answer.
    """
    if "://" not in prefix:
        return IndexedReader(prefix)
    if data.cache_dir is None:
        raise UserError(f"data.cache_dir is required: {prefix} is not on this machine")
    return StreamedReader(prefix, Path(data.cache_dir), round(data.cache_gb * 1e9))


class StreamedReader(IndexedReader):
    """An `IndexedReader` whose index (and so its prefix) lies in the cache; tokens come when they are read."""

    def __init__(self, url: str, cache: Path, max_bytes: int) -> None:
        folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
        self.prefix = str(folder / url.rpartition("/")[2])
        idx = idx_path(self.prefix)
        with _alone(folder):
            if not idx.is_file():
                _fetch_index(f"{url}.idx", idx)
        self._map_index(idx)
        version = _version(f"{url}.bin")
        self._check_length(version.total, version.url)
        self.tokens = RemoteTokens(version, self.dtype, folder, Room(cache, max_bytes))


class RemoteTokens:
    """A file of tokens as numpy reads one: its length, slices, and arrays of places."""

    def __init__(self, version: Version, dtype: np.dtype[Any], folder: Path, room: Room) -> None:
        self.dtype = dtype
        self._version, self._room = version, room
        # Another version of the file has blocks of its own.
        digest = hashlib.sha256(f"{version.validator} {version.total}".encode()).hexdigest()
        self._folder = folder / f"{VERSION}{digest[:16]}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._per_block = BLOCK_BYTES // dtype.itemsize
        self._block = functools.lru_cache(OPEN_BLOCKS)(self._read_block)

    def __len__(self) -> int:
        return self._version.total // self.dtype.itemsize

    def __getitem__(self, places: slice | Array) -> Array:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        found = np.empty(len(places), self.dtype)
        numbers = places // self._per_block
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            found[chosen] = self._block(number)[places[chosen] % self._per_block]
        return found

    def _read_block(self, number: int) -> Array:
        path = self._folder / f"{number:08d}"
        start = number * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, self._version.total)
        held = b""
        with contextlib.suppress(OSError):
            held = path.read_bytes()
            os.utime(path)  # what was read last stays longest
        if len(held) != stop - start:  # a machine that died may leave a block short
            held = self._fetch_block(start, stop)
            self._room.write(path, held)
        return np.frombuffer(held, self.dtype)

    def _fetch_block(self, start: int, stop: int) -> bytes:
        try:
            return read_part(self._version, start, stop, ATTEMPTS, BACKOFF_S)
        except TransferError as error:  # no mistake of the user's: the run may go on from its checkpoint later
            raise OSError(errno.EIO, f"bytes {start} to {stop}: {error}", self._version.url) from error


class Room:
    """What a cache may hold in all, of every URL and of versions that are no more; other processes may use it too."""

    def __init__(self, cache: Path, max_bytes: int) -> None:
        self._cache, self._max_bytes = cache, max_bytes
        self._unseen_bytes = max_bytes
        """Written since this process last looked at the whole cache."""

    def write(self, path: Path, block: bytes) -> None:
        """Writes a block; where the disk takes none, as a full one, the run goes on without."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            temporary.write_bytes(block)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self._unseen_bytes += len(block)
        if self._unseen_bytes * LOOKS > self._max_bytes:
            self._unseen_bytes = 0
            self._clear()

    def _clear(self) -> None:
        """Removes what was read longest ago."""
        blocks = []
        for path in self._cache.glob(f"*/{VERSION}*/*"):
            with contextlib.suppress(OSError):
                found = path.stat()
                blocks.append((found.st_mtime_ns, found.st_size, path))
        excess = sum(size for _, size, _ in blocks) - self._max_bytes
        for _, size, path in sorted(blocks):
            if excess <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            excess -= size


def _fetch_index(url: str, output: Path) -> None:
    try:
        fetch(Download(url, output, attempts=ATTEMPTS, backoff_s=BACKOFF_S))
    except UserError as error:
        if isinstance(error.__cause__, TransferError):
            raise OSError(errno.EIO, str(error.__cause__), url) from error
        raise


def _version(url: str) -> Version:
    """Which version of a file its server has now, and how long it is; OSError where it does not answer."""
    for attempt in range(ATTEMPTS):
        try:
            with open_part(url, 0, 1) as answer:
                if answer.total is None or not answer.takes_ranges:
                    raise UserError(f"{url}: its server gives no parts of files, so that it must be fetched whole")
                return Version(url, answer.validator, answer.total)
        except TransferError as error:
            if attempt + 1 == ATTEMPTS:
                raise OSError(errno.EIO, f"{error}, {ATTEMPTS} attempts", url) from error
            time.sleep(BACKOFF_S * 2**attempt)
    raise AssertionError("ATTEMPTS must be at least 1")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
