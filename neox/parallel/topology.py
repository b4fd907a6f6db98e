"""Rank arithmetic: one validated object for the words dp, tp, pp and rank."""

from __future__ import annotations

from dataclasses import dataclass

from neox.config.errors import UserError


@dataclass(frozen=True)
class Topology:
    """A grid of dp × tp × pp ranks, pipe slowest and tensor fastest: rank = (pp_index × dp + dp_index) × tp + tp_index.

    This is the order of DeepSpeed's PipeModelDataParallelTopology; tensor-parallel neighbours sit on one node.
    """

    dp: int
    tp: int
    pp: int

    def __post_init__(self) -> None:
        if min(self.dp, self.tp, self.pp) < 1:
            raise UserError(f"parallel: dp = {self.dp}, tp = {self.tp} and pp = {self.pp} must all be at least 1")

    @property
    def world_size(self) -> int:
        """Ranks in the grid."""
        return self.dp * self.tp * self.pp

    def check_world_size(self, world_size: int) -> None:
        """Raises UserError, with the whole equation, unless the grid has `world_size` ranks."""
        if self.world_size != world_size:
            raise UserError(
                f"parallel: dp × tp × pp = {self.dp} × {self.tp} × {self.pp} = {self.world_size} "
                f"is not the number of ranks, {world_size}"
            )

    def rank(self, *, pp: int, dp: int, tp: int) -> int:
        """Global rank at these coordinates."""
        return (pp * self.dp + dp) * self.tp + tp

    def tp_index(self, rank: int) -> int:
        """Place of `rank` along the tensor axis."""
        return rank % self.tp

    def dp_index(self, rank: int) -> int:
        """Place of `rank` along the data axis."""
        return rank // self.tp % self.dp

    def pp_index(self, rank: int) -> int:
        """Pipeline stage of `rank`."""
        return rank // (self.tp * self.dp)

    def tp_groups(self) -> list[list[int]]:
        """Ranks that share one shard set, in order of tp index."""
        return [
            [self.rank(pp=pp, dp=dp, tp=tp) for tp in range(self.tp)] for pp in range(self.pp) for dp in range(self.dp)
        ]

    def colors(self, rank: int) -> dict[str, int]:
        """Per axis a number that `rank` shares with exactly those ranks that differ from it in that index alone."""
        dp, tp, pp = self.dp_index(rank), self.tp_index(rank), self.pp_index(rank)
        return {"data": pp * self.tp + tp, "tensor": pp * self.dp + dp, "pipe": dp * self.tp + tp}
