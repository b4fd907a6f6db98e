"""Ranks as threads of this process: the collectives that checkpoints need, without a process group."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from neox.config.errors import UserError


class ThreadRanks:
    """One of `world_size` ranks that share `shared`, a list of one value per rank."""

    def __init__(self, rank: int, shared: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size = rank, len(shared)
        self._shared, self._barrier = shared, barrier

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order."""
        self._shared[self.rank] = value
        self._barrier.wait(60)
        values = list(self._shared)
        self._barrier.wait(60)
        return values

    def any_rank(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def agree(self, mistake: str | None) -> None:
        mistakes = [found for found in self.gather(mistake) if found is not None]
        if mistakes:
            raise UserError(mistakes[0])


def run_ranks(function: Callable[[ThreadRanks], Any], world_size: int = 1) -> list[Any]:
    """What `function` returned, or the exception that it raised, on each rank."""
    shared, barrier = [None] * world_size, threading.Barrier(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        futures = [pool.submit(function, ThreadRanks(rank, shared, barrier)) for rank in range(world_size)]
    return [future.exception() or future.result() for future in futures]
