"""Fabricated state: full tensors, cut into pieces as any layout would hold them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from neox.checkpoint.save import commit, write_rank
from neox.checkpoint.store import Store
from neox.parallel.pieces import Piece

SHARDED = {"embed.weight": 0, "layers.0.attn.out.weight": 1, "deep.weight": 1, "final_norm.weight": None}
SHAPES = {
    "embed.weight": (12, 5),
    "layers.0.attn.out.weight": (7, 8),
    "deep.weight": (3, 4, 5),
    "final_norm.weight": (5,),
}


def full_tensors(seed: int = 0) -> dict[tuple[str, str], Tensor]:
    """Random logical tensors of two kinds, by (kind, name)."""
    generator = torch.Generator().manual_seed(seed)
    kinds = ("weight", "exp_avg")
    return {(k, n): torch.randn(shape, generator=generator) for k in kinds for n, shape in SHAPES.items()}


def cut(full: dict[tuple[str, str], Tensor], tp: int, dp: int) -> Iterator[tuple[int, Piece]]:
    """(rank, piece) of every piece at a layout: shards over tp, and each flattened shard in uneven ranges over dp."""
    for (kind, name), tensor in full.items():
        dim = SHARDED[name] if tp > 1 else None
        num_shards = tp if dim is not None else 1
        for index in range(num_shards):
            shard = tensor if dim is None else tensor.chunk(num_shards, dim)[index]
            flat = shard.contiguous().flatten()
            bounds = [math.ceil(len(flat) * (i / dp) ** 1.5) for i in range(dp)] + [len(flat)]
            for i, (start, end) in enumerate(itertools.pairwise(bounds)):
                shape = tuple(tensor.shape)
                piece = Piece(kind, name, shape, dim, index, num_shards, start, end - start, flat[start:end])
                yield i * tp + index, piece


def save_at(
    store: Store,
    step: int,
    full: dict[tuple[str, str], Tensor],
    tp: int = 1,
    dp: int = 1,
    is_passing: bool = False,
) -> Path:
    """A complete checkpoint of `full` as the ranks of a layout would write it."""
    pieces = list(cut(full, tp, dp))
    store.temporary(step).mkdir(parents=True)
    for rank in range(tp * dp):
        write_rank(store.temporary(step), rank, [piece for owner, piece in pieces if owner == rank])
    commit(store, step, {"step": step, "is_passing": is_passing})
    return store.path(step)
