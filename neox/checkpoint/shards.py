"""Tensors whose shards lie in the files of several ranks, read a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neox.checkpoint.mapping import blocks
from neox.checkpoint.torch_file import TorchFile
from neox.config.errors import UserError


@dataclass(frozen=True)
class Shard:
    """One rank's shard of a tensor."""

    file: TorchFile
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the shard."""
        return self.file.entries[self.name].shape

    def rows(self, first: int, num_rows: int) -> Tensor:
        """[num_rows, …], fp32."""
        width = math.prod(self.shape[1:])
        found = self.file.read(self.name, first * width, (first + num_rows) * width)
        return found.float().view(num_rows, *self.shape[1:])


def shards_of(files: Sequence[TorchFile], name: str) -> list[Shard]:
    """The shards of a tensor, which are alike, rank by rank.

    Raises:
        UserError: a rank has none, or one of another shape.
    """
    for file in files:
        if name not in file.entries:
            raise UserError(f"{file.path}: has no tensor {name}")
        if (found := file.entries[name].shape) != (wanted := files[0].entries[name].shape):
            raise UserError(f"{file.path}: {name} has shape {list(found)}, in {files[0].path.name} {list(wanted)}")
    return [Shard(file, name) for file in files]


def columns(parts: Sequence[Tensor]) -> Tensor:
    """Shards whose columns stand side by side."""
    return torch.cat(list(parts), 1) if len(parts) > 1 else parts[0]


def mean(parts: Sequence[Tensor]) -> Tensor:
    """Of what every rank holds whole, as GPT-NeoX's converter: the ranks' rounding may have drifted apart."""
    return torch.stack(list(parts)).mean(0)


def total(parts: Sequence[Tensor]) -> Tensor:
    """Of what the ranks add to each other's."""
    return torch.stack(list(parts)).sum(0)


@dataclass(frozen=True)
class Rows:
    """The same rows of one or several shards, which together are rows of the whole."""

    shards: tuple[Shard, ...]
    first: int
    num_rows: int
    merge: Callable[[Sequence[Tensor]], Tensor] = columns
    """Of the shards' fp32 blocks one."""
    is_one_block: bool = False
    """Where `merge` needs all the rows."""

    def row_shape(self) -> tuple[int, ...]:
        """Of a row of the whole."""
        shape = self.shards[0].shape[1:]
        return (sum(shard.shape[1] for shard in self.shards),) if shape and self.merge is columns else shape

    def read(self) -> Iterator[Tensor]:
        """Block after block, fp32."""
        spans = [(0, self.num_rows)] if self.is_one_block else blocks(self.num_rows, self.row_shape())
        for first, num_rows in spans:
            yield self.merge([shard.rows(self.first + first, num_rows) for shard in self.shards])


def stacked(shards: Sequence[Shard]) -> list[Rows]:
    """Shards whose rows follow each other."""
    return [Rows((shard,), 0, shard.shape[0]) for shard in shards]


def beside(shards: Sequence[Shard], merge: Callable[[Sequence[Tensor]], Tensor] = columns) -> list[Rows]:
    """Shards that have the same rows."""
    return [Rows(tuple(shards), 0, shards[0].shape[0], merge)]


def read_all(rows: Sequence[Rows], shape: tuple[int, ...], name: str, asking: str) -> Iterator[Tensor]:
    """The blocks of the tensor that `rows` are.

    Raises:
        UserError: it has not the shape that the file `asking` asks for.
    """
    found = (sum(part.num_rows for part in rows), *rows[0].row_shape())
    if found != shape:
        raise UserError(f"{name} has shape {list(found)}, {asking} asks for {list(shape)}")
    for part in rows:
        yield from part.read()
