"""What one rank holds of a logical tensor: the unit in which state leaves and enters the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

WEIGHT = "weight"
"""The kind of an fp32 master weight; the others are the optimizer's (`neox.parallel.optimizer.BUILDERS`)."""
GRADIENT = "gradient"
"""The kind of a gradient, which is no state: it is there while a step is made."""


@dataclass(frozen=True)
class Piece:
    """A flat range of one tensor-parallel shard of a logical tensor.

    The shard is `full.chunk(num_shards, dim)[shard_index]` made contiguous (the whole tensor when `dim` is None); the
    piece is elements `start … start + numel` of the flattened shard.
    """

    kind: str
    """WEIGHT, or the name of a state tensor of the optimizer."""
    name: str
    """Logical name: that of the parameter in the single-device model."""
    global_shape: tuple[int, ...]
    """Shape of the whole logical tensor."""
    dim: int | None
    """Dimension that tensor parallelism shards; None: the shard is the whole tensor."""
    shard_index: int
    num_shards: int
    start: int
    """First element, counted in the flattened shard."""
    numel: int
    tensor: Tensor
    """fp32, one-dimensional, `numel` elements, on the engine's device: a view of its own memory, which the next step
    changes. Copies, which cannot be written through, are gradients, and quantized state unless inside
    `neox.parallel.adamw8bit.writable`, as in `Engine.load_pieces`."""


@dataclass(frozen=True)
class Place:
    """Where one rank's parameter lies: from element `first` of the flattened shard on, which is that of a `Piece`."""

    name: str
    """Of the logical tensor."""
    global_shape: tuple[int, ...]
    dim: int | None = None
    shard_index: int = 0
    num_shards: int = 1
    first: int = 0
    is_copy: bool = False
    """Another rank of the tensor group holds the same, to be counted and saved once."""

    def cut(self, full: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The parameter of this `shape`, from the whole logical tensor."""
        shard = full if self.dim is None else full.chunk(self.num_shards, self.dim)[self.shard_index]
        return shard.flatten()[self.first : self.first + math.prod(shape)].view(shape).clone()


class PieceReader(Protocol):
    """Source of saved state, whatever layout wrote it."""

    def read_piece(self, piece: Piece) -> Tensor:
        """The saved fp32 values at the coordinates of `piece`, one-dimensional; `piece.tensor` itself is not read."""
        ...
