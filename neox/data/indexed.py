"""Megatron and GPT-NeoX token files: PREFIX.bin holds the tokens, PREFIX.idx says where each item lies."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any

import numpy as np

from neox.config.errors import UserError
from neox.data.durable import replacing

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, number of items, length of doc_idx
# GPT-NeoX's codes. Megatron-core swaps 6 and 7, so of those the size of the items decides.
DTYPES: dict[int, Any] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float32,
    7: np.float64,
    8: np.uint16,
}
BLOCK = 1 << 22
MOST_TOKENS = (1 << 31) - 1
"""Of an item."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype GPT-NeoX gives tokens of a vocabulary: uint16 below 65500 entries, else int32."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def bin_path(prefix: str | Path) -> Path:
    """PREFIX.bin."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """PREFIX.idx."""
    return Path(f"{prefix}.idx")


class IndexedReader:
    """Memory-mapped view of one .bin/.idx pair.

    sizes [S] int32, tokens of each item; pointers [S] int64, byte offset of each item; doc_idx [D] int64: document d is
    items doc_idx[d] to doc_idx[d+1]; tokens, all items end to end. Opening reads the head and the last item alone;
    UserError when a file is missing, truncated or at odds with the other.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        idx, data = idx_path(prefix), bin_path(prefix)
        for path in (idx, data):
            if not path.is_file():
                raise UserError(f"{path}: no such file; a token file is the pair PREFIX.bin and PREFIX.idx")
        self._map_index(idx)
        held = data.stat().st_size
        self._check_length(held, str(data))
        empty = held == 0  # and cannot be mapped
        self.tokens: Any = np.empty(0, self.dtype) if empty else np.memmap(data, self.dtype, "r")

    def _map_index(self, idx: Path) -> None:
        self.dtype, num_items, num_documents = _read_header(idx)
        buffer = np.memmap(idx, mode="r", dtype=np.uint8)
        offset = HEADER.size
        self.sizes = np.frombuffer(buffer, np.dtype("<i4"), num_items, offset)
        self.pointers = np.frombuffer(buffer, np.dtype("<i8"), num_items, offset + 4 * num_items)
        self.doc_idx = np.frombuffer(buffer, np.dtype("<i8"), num_documents, offset + 12 * num_items)

    def _check_length(self, held: int, data: str) -> None:
        """Settles which float a float is; UserError where the index describes another number of bytes than `held`."""
        if self.dtype.kind == "f" and self._end() != held:
            other = np.dtype(np.float64 if self.dtype == np.float32 else np.float32)
            self.dtype = other if self._end(other) == held else self.dtype
        if held != self._end():
            raise UserError(
                f"{data}: {held} bytes, but {idx_path(self.prefix)} describes {self._end()}; the pair is truncated or "
                "does not belong together"
            )

    def _end(self, dtype: np.dtype[Any] | None = None) -> int:
        """Bytes that the last item says there are."""
        itemsize = (dtype or self.dtype).itemsize
        return int(self.pointers[-1]) + int(self.sizes[-1]) * itemsize if len(self.sizes) else 0

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, item: int) -> np.ndarray[Any, Any]:
        """Tokens of one item, a view of the file."""
        start = int(self.pointers[item]) // self.dtype.itemsize
        found: np.ndarray[Any, Any] = self.tokens[start : start + int(self.sizes[item])]
        return found

    def check(self) -> IndexedReader:
        """Itself, once the whole index was read: a UserError where its items or documents do not follow one another."""
        # Read, not mapped: pages of a map stay with the process, and these are gigabytes that nothing else needs.
        idx, end, last = idx_path(self.prefix), 0, 0
        for sizes, pointers in self._blocks(("<i4", 0), ("<i8", 4 * len(self))):
            lengths = sizes.astype(np.int64) * self.dtype.itemsize
            ends = end + np.cumsum(lengths)
            if np.any(sizes < 0) or not np.array_equal(pointers, ends - lengths):
                raise UserError(f"{idx}: item sizes and offsets do not agree; the index is damaged, make it again")
            end = int(ends[-1])
        if len(self.doc_idx) and self.doc_idx[0] != 0:
            raise UserError(f"{idx}: document bounds do not begin at 0; the index is damaged")
        for (bounds,) in self._blocks(("<i8", 12 * len(self)), length=len(self.doc_idx)):
            if bounds[0] < last or np.any(np.diff(bounds) < 0) or bounds[-1] > len(self):
                raise UserError(f"{idx}: document bounds are not increasing to {len(self)}; the index is damaged")
            last = int(bounds[-1])
        return self

    def _blocks(
        self, *columns: tuple[str, int], length: int | None = None
    ) -> Iterator[tuple[np.ndarray[Any, Any], ...]]:
        """Columns of the index, each given by its dtype and its offset behind the head, a block of rows at a time."""
        path, length = idx_path(self.prefix), len(self) if length is None else length
        for first in range(0, length, BLOCK):
            count = min(BLOCK, length - first)
            places = [(dtype, HEADER.size + offset + first * np.dtype(dtype).itemsize) for dtype, offset in columns]
            yield tuple(np.fromfile(path, dtype, count, offset=place) for dtype, place in places)


def _read_header(path: Path) -> tuple[np.dtype[Any], int, int]:
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if head.startswith(LEGACY_MAGIC):
        raise UserError(f"{path}: the old cached/lazy index format is not read; only mmap indices are (magic MMIDIDX)")
    if not head.startswith(MAGIC) or len(head) < HEADER.size:
        raise UserError(f"{path}: not an index file, or its header is truncated (it must start with MMIDIDX)")
    _, version, code, num_items, num_documents = HEADER.unpack(head)
    if version != 1 or code not in DTYPES:
        raise UserError(f"{path}: version {version}, dtype code {code}; allowed are version 1 and codes 1 to 8")
    expected = HEADER.size + 12 * num_items + 8 * num_documents
    held = path.stat().st_size
    if held != expected:
        raise UserError(f"{path}: {held} bytes, but its header announces {expected}; the file is truncated or damaged")
    return np.dtype(DTYPES[code]), num_items, num_documents


class IndexedWriter:
    """Writes a .bin/.idx pair as a stream; both appear together when the `with` block ends well, else neither does.

    So does a `companion`, a file about them, which the block writes at the path `self.companion`.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype[Any], companion: Path | None = None) -> None:
        self._paths = [bin_path(prefix), idx_path(prefix), *([companion] if companion else [])]
        self.dtype = np.dtype(dtype)
        self._num_items = self._num_begun = 0
        self._num_bounds = 0
        self._stack = ExitStack()

    def __enter__(self) -> IndexedWriter:
        with ExitStack() as stack:
            data, self._index, *companions = stack.enter_context(replacing(*self._paths))
            self.companion = companions[0] if companions else None
            self._file = stack.enter_context(data.open("wb"))
            # On disk, so that memory does not grow with the number of documents; without a name, so that none is left.
            self._sizes, self._bounds = (stack.enter_context(TemporaryFile(dir=data.parent)) for _ in range(2))
            self._add_bounds(np.zeros(1, np.int64))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is not None:
            return self._stack.__exit__(kind, error, trace)
        assert not self._num_begun, "the last item has no size"
        with self._stack:
            self._file.flush()
            self._write_index(self._index)
        return None

    def add_items(self, tokens: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> None:
        """Append items whose tokens lie end to end; each is a document. Tokens behind them begin the next call's first.

        tokens [sum(sizes), or more] of the writer's dtype. UserError: an item is longer than the format can say.
        """
        whole = sizes.astype(np.int64)
        more = tokens.size - int(whole.sum())
        if len(sizes):
            whole[0] += self._num_begun
            self._num_begun = 0
        self._num_begun += more
        if len(whole) and whole.max() > MOST_TOKENS:
            raise UserError(f"a document of {whole.max()} tokens: .idx files hold sizes up to {MOST_TOKENS}; divide it")
        self._write(tokens)
        self._record(whole)
        self._add_bounds(np.arange(self._num_items - len(sizes) + 1, self._num_items + 1, dtype=np.int64))

    def add_file(self, source: IndexedReader, observe: Callable[[np.ndarray[Any, Any]], None] | None = None) -> None:
        """Append all items of another pair and its document bounds; `observe` sees each block of tokens."""
        offset = self._num_items
        for start in range(0, len(source.tokens), BLOCK):
            block = source.tokens[start : start + BLOCK]
            self._write(block)
            if observe:
                observe(block)
        for start in range(0, len(source), BLOCK):
            self._record(source.sizes[start : start + BLOCK])
        for start in range(1, len(source.doc_idx), BLOCK):
            self._add_bounds(source.doc_idx[start : start + BLOCK] + offset)

    def _write(self, tokens: np.ndarray[Any, Any]) -> None:
        assert tokens.dtype == self.dtype, f"{tokens.dtype} tokens in a file of {self.dtype}"
        self._file.write(np.ascontiguousarray(tokens).data)

    def _record(self, sizes: np.ndarray[Any, Any]) -> None:
        self._sizes.write(np.ascontiguousarray(sizes, "<i4").data)
        self._num_items += len(sizes)

    def _add_bounds(self, bounds: np.ndarray[Any, Any]) -> None:
        self._bounds.write(np.ascontiguousarray(bounds, "<i8").data)
        self._num_bounds += len(bounds)

    def _write_index(self, path: Path) -> None:
        code = next(code for code, dtype in DTYPES.items() if self.dtype == dtype)
        end = 0
        with path.open("wb") as file:
            file.write(HEADER.pack(MAGIC, 1, code, self._num_items, self._num_bounds))
            for block in _read_back(self._sizes):
                file.write(block)
            for block in _read_back(self._sizes):
                lengths = np.frombuffer(block, "<i4").astype(np.int64) * self.dtype.itemsize
                ends = end + np.cumsum(lengths)
                file.write((ends - lengths).astype("<i8").data)
                end = int(ends[-1])
            for block in _read_back(self._bounds):
                file.write(block)


def _read_back(file: IO[bytes]) -> Iterator[bytes]:
    """What was written to a file, from its beginning, a block at a time."""
    file.seek(0)
    while block := file.read(BLOCK):
        yield block


def open_alike(prefixes: Sequence[str | Path]) -> list[IndexedReader]:
    """One or more token files that can be laid end to end. UserError when one is damaged, or their dtypes differ."""
    readers = [IndexedReader(prefix).check() for prefix in prefixes]
    for reader in readers[1:]:
        if reader.dtype != readers[0].dtype:
            raise UserError(f"{reader.prefix}: {reader.dtype} tokens, but {readers[0].prefix} has {readers[0].dtype}")
    return readers
