"""Which rows of which tensor of an exported model are which of ours: one list, followed in both directions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from neox.checkpoint.families import Family, exported_names
from neox.config.derive import padded_vocab
from neox.config.schema import ModelConfig
from neox.config.shape import head_dim, num_kv_heads
from neox.model.gpt import GPT

BLOCK_BYTES = 32 * 2**20
"""Most that is held of a tensor at a time, as fp32; one row at least."""

ReadRows = Callable[[str, int, int], Tensor]
"""(name, first row, number of rows) → these rows, flat, in any floating-point dtype."""


@dataclass(frozen=True)
class Run:
    """Rows that follow each other both in a tensor of ours and in one of theirs."""

    ours: str
    our_row: int
    theirs: str
    their_row: int
    num_rows: int


def logical_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our tensors."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in GPT(model, padded_vocab(model)).named_parameters()}


class RowMap:
    """Every row of one model, in both forms."""

    def __init__(self, model: ModelConfig, family: Family) -> None:
        self.ours = logical_shapes(model)
        """Shapes of our tensors."""
        self.theirs: dict[str, tuple[int, ...]] = {}
        """Shapes of theirs, in an order that keeps each layer together."""
        self._to_ours: dict[str, list[Run]] = defaultdict(list)
        self._to_theirs: dict[str, list[Run]] = defaultdict(list)
        for name, shape in self.ours.items():
            for theirs, part in exported_names(family, name).items():
                self._add(name, theirs, _part_rows(model, name, part) if part else [(0, shape[0])])
        if family.mlp_always_biased and not model.bias:
            self._add_zero_biases(family)

    def _add(self, ours: str, theirs: str, rows: list[tuple[int, int]]) -> None:
        for first, length in rows:
            their_first = self.theirs.get(theirs, (0,))[0]
            run = Run(ours, first, theirs, their_first, length)
            self.theirs[theirs] = (their_first + length, *self.ours[ours][1:])
            self._to_ours[ours].append(run)
            self._to_theirs[theirs].append(run)

    def _add_zero_biases(self, family: Family) -> None:
        """GPTNeoX's attention_bias leaves out attention's biases only; its MLP always has them."""
        for name, shape in self.ours.items():
            if ".mlp." in name:
                bias = exported_names(family, f"{name.removesuffix('weight')}bias")
                self.theirs |= dict.fromkeys(bias, (shape[0],))

    def exported(self, name: str, read: ReadRows) -> Iterator[Tensor]:
        """Their tensor `name`, block by block; `read` gives rows of ours."""
        for run in self._to_theirs[name]:
            for first, length in blocks(run.num_rows, self.theirs[name][1:]):
                yield read(run.ours, run.our_row + first, length)
        if not self._to_theirs[name]:
            yield torch.zeros(self.theirs[name])

    def imported(self, name: str, read: ReadRows) -> Iterator[Tensor]:
        """Our tensor `name`, block by block; `read` gives rows of theirs."""
        for run in sorted(self._to_ours[name], key=attrgetter("our_row")):
            for first, length in blocks(run.num_rows, self.ours[name][1:]):
                yield read(run.theirs, run.their_row + first, length)


def blocks(num_rows: int, row_shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each block of a tensor's rows."""
    step = max(1, BLOCK_BYTES // (4 * math.prod(row_shape)))
    for first in range(0, num_rows, step):
        yield first, min(step, num_rows - first)


def _part_rows(model: ModelConfig, name: str, part: str) -> list[tuple[int, int]]:
    """Where in the projection `name`, [kv head][its queries, k, v][head_dim], the queries, keys or values lie."""
    group, width = 0 if ".kv." in name else model.num_heads // num_kv_heads(model), head_dim(model)
    first, num_heads = {"q": (0, group), "k": (group, 1), "v": (group + 1, 1)}[part]
    return [((kv * (group + 2) + first) * width, num_heads * width) for kv in range(num_kv_heads(model))]
