"""Reading a checkpoint at any layout: only the saved slices that overlap what is asked for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox.checkpoint import manifest as manifests
from neox.checkpoint.manifest import SliceInfo
from neox.checkpoint.reading import hold
from neox.checkpoint.tensor_file import TensorFile
from neox.config.errors import UserError
from neox.model.gpt import GPT
from neox.parallel.groups import TensorGroup
from neox.parallel.inference import deal
from neox.parallel.pieces import Piece

Runs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Runs of consecutive elements: start in the whole flattened tensor (ascending), start in the piece, length."""


class TensorReader:
    """Tensors of one checkpoint directory, whole or by piece; while it lives the checkpoint is not pruned."""

    def __init__(self, directory: Path | str, *, is_verified: bool = False) -> None:
        """Reads the manifest and checks every file's size; a file's hash is checked when it is first read.

        With `is_verified` the ranks have together checked every file before, and nothing is checked again.

        Raises:
            UserError: the directory is not a checkpoint, or is damaged.
        """
        self.directory = Path(directory)
        self._is_verified = is_verified
        self._lock = hold(self.directory)
        self.manifest = manifests.read(self.directory)
        if not is_verified:
            for file in self.manifest.files:
                manifests.check_size(self.directory, file)
        self._tensors = self.manifest.tensors()
        self._slices = self.manifest.slices()
        self._files = {file.name: file for file in self.manifest.files}
        self._opened: dict[str, TensorFile] = {}

    def names(self, kind: str = "weight") -> list[str]:
        """Logical names of every tensor of a kind."""
        return [name for found, name in self._tensors if found == kind]

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Global shape of a logical tensor."""
        return self._info(kind, name).shape

    def read(self, kind: str, name: str) -> Tensor:
        """The whole logical tensor, fp32."""
        shape = self.shape(kind, name)
        whole = Piece(kind, name, shape, None, 0, 1, 0, math.prod(shape), torch.empty(0))
        return self.read_piece(whole).view(shape)

    def read_rows(self, name: str, row: int, num_rows: int) -> Tensor:
        """`num_rows` rows of a weight from `row` on, flat, fp32."""
        shape = self.shape("weight", name)
        width = math.prod(shape[1:])
        piece = Piece("weight", name, shape, None, 0, 1, row * width, num_rows * width, torch.empty(0))
        return self.read_piece(piece)

    def read_piece(self, piece: Piece) -> Tensor:
        """The values at the coordinates of `piece`, fp32 [piece.numel]; `piece.tensor` is not looked at.

        Raises:
            UserError: the checkpoint holds no such tensor, or one of another shape, or is damaged.
        """
        info = self._info(piece.kind, piece.name)
        if info.shape != tuple(piece.global_shape):
            saved, wanted = list(info.shape), list(piece.global_shape)
            raise UserError(
                f"{self.directory}: {piece.kind} of {piece.name} has shape {saved}, the model needs {wanted}"
            )
        out = torch.empty(piece.numel, dtype=torch.float32)
        wanted_runs = runs(info.shape, piece)
        num_read = 0
        for file, saved_slice in self._slices[piece.kind, piece.name]:
            num_read += self._copy_overlap(out, wanted_runs, info.shape, file, saved_slice)
        if num_read != piece.numel:
            raise UserError(f"{self.directory}: {piece.kind} of {piece.name} is incomplete")
        return out

    def _copy_overlap(self, out: Tensor, wanted: Runs, shape: tuple[int, ...], file: str, saved: SliceInfo) -> int:
        to, source, length = overlap(wanted, runs(shape, saved))
        if not len(length):
            return 0
        first, last = int(source.min()), int((source + length).max())
        data = self._open(file).read(saved.key, first, last)
        for i, j, n in zip(to.tolist(), (source - first).tolist(), length.tolist(), strict=True):
            out[i : i + n] = data[j : j + n]
        return int(length.sum())

    def _info(self, kind: str, name: str) -> manifests.TensorInfo:
        try:
            return self._tensors[kind, name]
        except KeyError:
            raise UserError(f"{self.directory} holds no {kind} of {name}") from None

    def _open(self, name: str) -> TensorFile:
        if name not in self._opened:
            if not self._is_verified:
                manifests.check_file(self.directory, self._files[name])
            self._opened[name] = TensorFile(self.directory / name)
        return self._opened[name]


def runs(shape: tuple[int, ...], part: Piece | SliceInfo) -> Runs:
    """Where the elements of a piece lie in the whole flattened tensor of `shape`.

    A shard along `dim` is, for each index of the dimensions before it, one run of shape[dim] / num_shards × (dimensions
    after it) elements.
    """
    before = math.prod(shape[: part.dim]) if part.dim is not None else 1
    row = math.prod(shape) // before
    width = row // part.num_shards
    end = part.start + part.numel
    index = np.arange(part.start // width, -(-end // width), dtype=np.int64)
    first = np.maximum(index * width, part.start)
    last = np.minimum((index + 1) * width, end)
    begin = index * row + part.shard_index * width + first - index * width
    return begin, first - part.start, last - first


def overlap(a: Runs, b: Runs) -> Runs:
    """Elements in both pieces, as few runs as possible: start in piece a, start in piece b, length."""
    points = np.unique(np.concatenate([a[0], a[0] + a[2], b[0], b[0] + b[2]]))
    begin, length = points[:-1], np.diff(points)
    in_a, at_a = _locate(a, begin)
    in_b, at_b = _locate(b, begin)
    both = in_a & in_b
    at_a, at_b, length = at_a[both], at_b[both], length[both]
    if not len(length):
        return at_a, at_b, length
    breaks = (at_a[1:] != at_a[:-1] + length[:-1]) | (at_b[1:] != at_b[:-1] + length[:-1])
    starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    return at_a[starts], at_b[starts], np.add.reduceat(length, starts)


def _locate(piece: Runs, points: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each point of the whole tensor lies in the piece, and where in it."""
    index = np.searchsorted(piece[0], points, side="right") - 1
    offset = points - piece[0][index]
    is_inside = (index >= 0) & (offset < piece[2][index])
    return is_inside, piece[1][index] + offset


def load_model_weights(model: GPT, directory: Path | str, tensor: TensorGroup | None = None) -> None:
    """Fills the model, which may be on the meta device, from a checkpoint of any layout: with this rank's part of it.

    Raises:
        UserError: a parameter is missing from the checkpoint or has another shape.
    """
    reader = TensorReader(directory)

    def load(name: str, shape: tuple[int, ...]) -> Tensor:
        whole = Piece("weight", name, shape, None, 0, 1, 0, math.prod(shape), torch.empty(0))
        return reader.read_piece(whole).view(shape)

    deal(model, tensor or TensorGroup(), load)
