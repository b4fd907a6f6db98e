"""Host memory that the training state is copied to, so that training may go on while a save writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch

from neox.parallel.pieces import Piece


class Staging:
    """One block of memory for this rank's pieces, kept from save to save.

    Fresh memory costs more than the copy: 0.73 s against 0.02 s for 240 MB on a CPU. On a GPU it is pinned.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0)

    def copy(self, pieces: Iterable[Piece]) -> list[Piece]:
        """The pieces with copies of their values, valid until the next call."""
        held = [piece for piece in pieces if piece.numel]
        is_on_gpu = any(piece.tensor.is_cuda for piece in held)
        sizes = [piece.numel for piece in held]
        if self._block.numel() != sum(sizes):
            self._block = torch.empty(sum(sizes), pin_memory=is_on_gpu)
        copies = []
        for piece, target in zip(held, self._block.split(sizes), strict=True):
            if is_on_gpu:
                target.copy_(piece.tensor, non_blocking=True)
            else:  # torch would wait for a team of threads at every piece: on busy cores that takes ten times as long
                np.copyto(target.numpy(), piece.tensor.numpy())
            copies.append(dataclasses.replace(piece, tensor=target))
        if is_on_gpu:
            torch.cuda.current_stream().synchronize()
        return copies
