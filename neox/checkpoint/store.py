"""A run's checkpoints on disk: which are complete, which is the latest, which may go; no torch."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

from neox.checkpoint import manifest as manifests
from neox.checkpoint.reading import try_removing
from neox.config.derive import is_kept_for_ever
from neox.config.errors import UserError
from neox.config.schema import CheckpointConfig

STEP = re.compile(r"step_(\d{8,})")


def step_name(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"step_{step:08d}"


class Store:
    """The folder of a run's checkpoints.

    A checkpoint is a folder step_00001000; what is being written or removed has a name that begins with a dot.
    """

    def __init__(self, folder: Path, token: str | None = None) -> None:
        """`token`: the claim to write here that `neox.checkpoint.generation` gave; None where nobody has one."""
        self.folder, self.token = folder, token

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is or would be."""
        return self.folder / step_name(step)

    def temporary(self, step: int) -> Path:
        """The hidden folder, of this claim's own, that the ranks write the checkpoint of `step` to."""
        claim = f"-{self.token}" if self.token else ""
        return self.folder / f".tmp-{step_name(step)}{claim}"

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        found = (STEP.fullmatch(path.parent.name) for path in self.folder.glob(f"step_*/{manifests.NAME}"))
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> int | None:
        """The highest step with a complete checkpoint."""
        return max(self.steps(), default=None)

    def passing_steps(self) -> list[int]:
        """Those of `steps` whose checkpoint goes when a newer one stands; of a damaged one nobody knows it."""
        found = []
        for step in self.steps():
            with contextlib.suppress(UserError):
                if manifests.read(self.path(step)).state.get("is_passing"):
                    found.append(step)
        return found

    def remove_leftovers(self) -> list[Path]:
        """Deletes what a dead run was writing or removing, and returns it; one process, before any save.

        A run that is not dead after all finds its folder gone under the name that it knows, so it cannot commit it.
        """
        leftovers = sorted(self.folder.glob(".tmp-*"))
        for path in leftovers:
            delete(path)
        return leftovers

    def remove(self, step: int) -> bool:
        """Deletes a checkpoint, unless someone reads it; it stops being one before its first file goes."""
        with try_removing(self.path(step)) as is_free:
            if is_free:
                delete(self.path(step))
        return is_free

    def prune(self, config: CheckpointConfig, passing: Collection[int] = ()) -> list[int]:
        """Deletes all but the newest `keep_last`, the multiples of `keep_every` and the listed `steps`; returns those.

        Steps that are kept anyway, and `passing`, do not count towards keep_last ≥ 1, and the newest of all never goes.
        A checkpoint that is being read stays until the next time. keep_last None deletes nothing.
        """
        if config.keep_last is None:
            return []
        candidates = [step for step in self.steps() if step not in passing and not is_kept_for_ever(config, step)]
        return [step for step in candidates[: -config.keep_last] if self.remove(step)]

    def set_aside(self, step: int) -> Path:
        """Gives a damaged checkpoint a name that is none of a checkpoint, for a person to look at; returns the path."""
        aside = self.folder / f"damaged_{step_name(step)}"
        if aside.exists():
            delete(aside)
        self.path(step).rename(aside)
        return aside


def checkpoints_at(path: Path) -> list[Path]:
    """`path` itself if it is a checkpoint, else all of a run directory or a folder of checkpoints, ascending.

    Raises:
        UserError: there is none.
    """
    if (path / manifests.NAME).is_file():
        return [path]
    for store in (Store(path / "checkpoints"), Store(path)):
        if steps := store.steps():
            return [store.path(step) for step in steps]
    raise UserError(f"{path} is neither a checkpoint nor a run directory that holds one")


def delete(folder: Path) -> None:
    """Removes a folder that others may still write to: first its name, at once, then what is in it."""
    doomed = folder.with_name(f".tmp-removed-{secrets.token_hex(4)}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # what is left goes with the next start's leftovers


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
