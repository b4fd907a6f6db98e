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
OPEN_BLOCKS = 64
"""Blocks that a process keeps in memory."""
Array = np.ndarray[Any, Any]


def open_tokens(prefix: str, data: DataConfig) -> IndexedReader:
    """The reader of a token file on this machine, or behind a URL.

    Raises:
        UserError: as of `IndexedReader`; a URL without data.cache_dir, or one that does not give the files.
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
                fetch(Download(f"{url}.idx", idx))
        self._map_index(idx)
        version = _version(f"{url}.bin")
        self._check_length(version.total, version.url)
        self.tokens = RemoteTokens(version, self.dtype, folder, max_bytes)


class RemoteTokens:
    """A file of tokens as numpy reads one: its length, slices, and arrays of places."""

    def __init__(self, version: Version, dtype: np.dtype[Any], folder: Path, max_bytes: int) -> None:
        self.dtype = dtype
        self._version, self._max_bytes = version, max_bytes
        # Another version of the file has blocks of its own.
        self._folder = folder / hashlib.sha256(f"{version.validator} {version.total}".encode()).hexdigest()[:16]
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
        try:
            held = path.read_bytes()
            os.utime(path)  # what was read last stays longest
        except FileNotFoundError:
            held = self._fetch_block(number, path)
        return np.frombuffer(held, self.dtype)

    def _fetch_block(self, number: int, path: Path) -> bytes:
        start = number * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, self._version.total)
        try:
            held = read_part(self._version, start, stop, ATTEMPTS, BACKOFF_S)
        except TransferError as error:  # no mistake of the user's: the run may go on from its checkpoint later
            raise OSError(errno.EIO, f"bytes {start} to {stop}: {error}", self._version.url) from error
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        temporary.write_bytes(held)
        temporary.replace(path)
        self._make_room()
        return held

    def _make_room(self) -> None:
        """Removes what was read longest ago; other processes may do the same at the same time."""
        blocks = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                blocks.append((entry.stat().st_mtime_ns, entry.path))
        for _, path in sorted(blocks)[: max(0, len(blocks) - max(1, self._max_bytes // BLOCK_BYTES))]:
            Path(path).unlink(missing_ok=True)


def _version(url: str) -> Version:
    """Which version of a file its server has now, and how long it is."""
    for attempt in range(ATTEMPTS):
        try:
            with open_part(url, 0, 1) as answer:
                if answer.total is None or not answer.takes_ranges:
                    raise UserError(f"{url}: its server gives no parts of files, so that it must be fetched whole")
                return Version(url, answer.validator, answer.total)
        except TransferError as error:
            if attempt + 1 == ATTEMPTS:
                raise UserError(f"{url}: {error}, {ATTEMPTS} attempts") from error
    raise AssertionError("ATTEMPTS must be at least 1")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
