"""safetensors files, written and read a range at a time: no tensor need ever be whole in memory, and none is mapped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neox.checkpoint.store import flush
from neox.config.errors import UserError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The format's name → torch's, of the numbers that weights are made of."""

CHUNK_BYTES = 4 * 2**20
"""Bytes hashed and then written while they are still in the processor's cache."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    name: str
    dtype: str
    """A key of DTYPES."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write(
    path: Path, entries: Sequence[Entry], blocks: Iterable[Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Writes and flushes the file; returns its size and sha256.

    safetensors' own writer copies every tensor first and leaves the hash to a second pass over the file: 0.77 s
    against 0.28 s for 240 MB, during which training has a core less.

    Args:
        blocks: contiguous tensors on the CPU, which laid end to end are the entries' data, in their order.
    """
    header = _header(entries, metadata)
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for chunk in _chunks(header, blocks):
            digest.update(chunk)
            while len(chunk):  # a raw write may take a part only
                chunk = chunk[file.write(chunk) :]
            size = file.tell()
    assert size == len(header) + sum(entry.num_bytes for entry in entries), f"{path}: the blocks are not the entries"
    flush(path)
    return size, digest.hexdigest()


def split(entries: Sequence[Entry], max_bytes: int) -> list[list[Entry]]:
    """Deals the entries, in their order, to files of at most `max_bytes` of data; a larger tensor has its own."""
    files: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if files[-1] and size + entry.num_bytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.num_bytes
    return files


class TensorFile:
    """Reads any range of any tensor of a safetensors file."""

    def __init__(self, path: Path) -> None:
        """Reads the header.

        Raises:
            UserError: there is no such file, or it is damaged.
        """
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
            size = path.stat().st_size
            length = int.from_bytes(self._file.read(8), "little")
            header: dict[str, Any] = json.loads(self._file.read(min(length, size)))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self._begin = 8 + length
            self.entries = {name: Entry(name, e["dtype"], tuple(e["shape"])) for name, e in header.items()}
            self._offsets = {name: tuple(map(int, e["data_offsets"])) for name, e in header.items()}
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{path} is damaged: it is not a safetensors file") from None
        for name, (begin, end) in self._offsets.items():
            entry = self.entries[name]
            is_ours = entry.dtype in DTYPES
            if not 0 <= begin <= end <= size - self._begin or (is_ours and end - begin != entry.num_bytes):
                raise UserError(f"{path} is damaged: {name} does not lie within the file as its header says")

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` … `stop` of the flattened tensor, in the file's dtype.

        Raises:
            UserError: the tensor does not hold floating-point numbers, or the file became shorter.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise UserError(f"{self.path}: {name} is {entry.dtype}; weights are {', '.join(DTYPES)}")
        out = torch.empty(stop - start, dtype=DTYPES[entry.dtype])
        assert 0 <= start <= stop <= math.prod(entry.shape)
        fill(out, self._file, self._begin + self._offsets[name][0] + start * out.itemsize, self.path)
        return out


def fill(out: Tensor, file: FileIO, offset: int, path: Path) -> None:
    """Reads the contiguous tensor `out` from byte `offset` of the open file `path` on.

    Raises:
        UserError: the file ends before.
    """
    view = out.view(torch.uint8).numpy().data
    file.seek(offset)
    while len(view):
        num_read = file.readinto(view)
        if not num_read:
            raise UserError(f"{path} is damaged: it ends within a tensor")
        view = view[num_read:]


def _header(entries: Sequence[Entry], metadata: Mapping[str, str] | None) -> bytes:
    """Length of what follows (8 bytes, little endian), then the entries as JSON, as safetensors defines it."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.num_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _chunks(header: bytes, blocks: Iterable[Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for block in blocks:
        data = block.flatten().view(torch.uint8).numpy().data
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]
