"""A trace of some steps, and of their memory, for a person to look at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from neox.config.errors import UserError
from neox.config.schema import LogConfig


class Profile:
    """Records this rank's steps first … last of log.profile_steps; nothing of it is left in the steps after them."""

    def __init__(self, log: LogConfig, folder: Path, rank: int) -> None:
        """Writes rank_*.json, a trace for Perfetto, and rank_*.memory.pickle, for pytorch.org/memory_viz.

        Raises:
            UserError: log.memory_snapshot without a GPU, whose allocator keeps the history.
        """
        if log.memory_snapshot and not torch.cuda.is_available():
            raise UserError(
                "log.memory_snapshot = True: PyTorch keeps a history of GPU memory only; there is no GPU here"
            )
        self._steps = range(log.profile_steps[0], log.profile_steps[1] + 1) if log.profile_steps else range(0)
        self._has_memory = log.memory_snapshot
        self._folder, self._name = folder, f"rank_{rank:05d}"
        self._profile: profile | None = None

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around optimizer step `number`."""
        if number in self._steps and self._profile is None:
            self._begin()
        yield
        if self._profile is not None and number >= self._steps[-1]:
            self.close()

    def _begin(self) -> None:
        if self._has_memory:
            torch.cuda.memory._record_memory_history()
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu], record_shapes=True)
        self._profile.start()

    def close(self) -> None:
        """Writes what was recorded, also of steps that did not come to their end; nothing where nothing was."""
        if self._profile is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profile.stop()
        self._profile.export_chrome_trace(str(self._folder / f"{self._name}.json"))
        self._profile = None
        if self._has_memory:
            torch.cuda.memory._dump_snapshot(str(self._folder / f"{self._name}.memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
