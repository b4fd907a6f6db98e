"""A run's checkpoints on disk: which are complete, which is the latest, which may go; no torch."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from neox.checkpoint import manifest as manifests

STEP = re.compile(r"step_(\d{8,})")


def step_name(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"step_{step:08d}"


class Store:
    """The folder of a run's checkpoints.

    A checkpoint is a folder step_00001000; what is being written or removed has a name that begins with a dot.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is or would be."""
        return self.folder / step_name(step)

    def temporary(self, step: int) -> Path:
        """The hidden folder that the ranks write the checkpoint of `step` to."""
        return self.folder / f".tmp-{step_name(step)}"

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        found = (STEP.fullmatch(path.parent.name) for path in self.folder.glob(f"step_*/{manifests.NAME}"))
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> int | None:
        """The highest step with a complete checkpoint."""
        return max(self.steps(), default=None)

    def remove_leftovers(self) -> list[Path]:
        """Deletes what a dead run was writing or removing, and returns it; one process, before any save."""
        leftovers = sorted(self.folder.glob(".tmp-*"))
        for path in leftovers:
            shutil.rmtree(path)
        return leftovers

    def remove(self, step: int) -> None:
        """Deletes a checkpoint; it stops being one before its first file goes."""
        doomed = self.folder / f".tmp-removed-{step_name(step)}"
        self.path(step).rename(doomed)
        shutil.rmtree(doomed)

    def prune(self, keep_last: int | None, keep: Iterable[int]) -> list[int]:
        """Deletes all but the newest `keep_last` checkpoints and the steps in `keep`; returns what went.

        None deletes nothing. Steps in `keep` do not count towards keep_last ≥ 1, so the newest of all never goes.
        """
        if keep_last is None:
            return []
        assert keep_last >= 1
        kept = set(keep)
        candidates = [step for step in self.steps() if step not in kept]
        doomed = candidates[: max(0, len(candidates) - keep_last)]
        for step in doomed:
            self.remove(step)
        return doomed


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
