"""Two checkpoints, of whatever layouts, compared tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neox.checkpoint.reshard import TensorReader


@dataclass(frozen=True)
class Difference:
    """How one logical tensor differs between two checkpoints."""

    kind: str
    name: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    """In the left and in the right one; None where it is missing."""
    max_abs: float | None
    """Largest |left − right|; 0 when both hold the same values; None where the shapes differ."""
    relative: float | None
    """‖left − right‖ / ‖left‖, Euclidean; None where the shapes differ."""

    @property
    def is_equal(self) -> bool:
        """Whether both hold the same values."""
        return self.max_abs == 0


def compare(left: Path, right: Path) -> Iterator[Difference]:
    """Every logical tensor that either checkpoint holds, one in memory at a time.

    Raises:
        UserError: one is no checkpoint, or is damaged.
    """
    readers = TensorReader(left), TensorReader(right)
    tensors = tuple(reader.manifest.tensors() for reader in readers)
    for kind, name in sorted({**tensors[0], **tensors[1]}):
        infos = [held.get((kind, name)) for held in tensors]
        shapes = (infos[0].shape if infos[0] else None, infos[1].shape if infos[1] else None)
        max_abs = relative = None
        if shapes[0] == shapes[1]:
            max_abs, relative = distance(*(reader.read(kind, name) for reader in readers))
        yield Difference(kind, name, shapes, max_abs, relative)


def distance(left: Tensor, right: Tensor) -> tuple[float, float]:
    """(largest absolute, relative Euclidean) difference of two fp32 tensors; a NaN is equal to its own bits."""
    if torch.equal(left.view(torch.int32), right.view(torch.int32)):
        return 0.0, 0.0
    delta = (left.double() - right.double()).flatten()
    norm = float(left.double().norm())
    return float(delta.abs().max()), float(delta.norm()) / norm if norm else float("inf")
