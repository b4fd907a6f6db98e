"""Starting a run on its checkpoints: taking them over, and finding the newest that is intact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from neox.checkpoint import generation
from neox.checkpoint import manifest as manifests
from neox.checkpoint.ranks import Ranks, fail_together
from neox.checkpoint.reshard import TensorReader
from neox.checkpoint.store import Store
from neox.checkpoint.verify import damages
from neox.config.errors import UserError


def take_over(store: Store, ranks: Ranks) -> Store:
    """The store, claimed by this start of the run; every rank calls it.

    Raises:
        SaveError: on every rank, when the first could not write there.
    """
    token, error = None, None
    if ranks.rank == 0:
        try:
            token = generation.claim(store)
        except OSError as caught:
            error = caught
    fail_together(ranks, store.folder, error)
    return Store(store.folder, ranks.broadcast(token))


def newest_intact(store: Store, ranks: Ranks, say: Callable[[str], None]) -> TensorReader | None:
    """The newest checkpoint of which every byte is what was saved, for every rank the same; None: there is none.

    Each file is read and hashed by one rank. Damaged checkpoints that are newer get another name, and `say` tells of
    them.

    Raises:
        UserError: on every rank: there are checkpoints, but all of them are damaged.
    """
    damaged: list[int] = []
    for step in reversed(ranks.broadcast(store.steps() if ranks.rank == 0 else None)):
        path = store.path(step)
        try:
            reader = verified(path, ranks)
        except UserError as damage:
            say(f"warning: {damage}")
            damaged.append(step)
            continue
        for newer in damaged if ranks.rank == 0 else ():
            aside = store.set_aside(newer)
            say(f"warning: the checkpoint of step {newer} is not used, and is now {aside}")
        return reader
    if damaged:
        raise UserError(f"{store.folder}: every checkpoint is damaged; repair one, or begin with another --run-dir")
    return None


def verified(directory: Path, ranks: Ranks) -> TensorReader:
    """A reader of a checkpoint whose files the ranks have hashed, each a share of them; every rank calls it.

    Raises:
        UserError: on every rank: one of them found damage.
    """
    ranks.agree(_damage_of_share(directory, ranks))
    return TensorReader(directory, is_verified=True)


def _damage_of_share(directory: Path, ranks: Ranks) -> str | None:
    """The first damage that this rank finds in its share of the files."""
    try:
        files = manifests.read(directory).files
    except UserError as error:
        return str(error)
    found = damages(directory, files[ranks.rank :: ranks.world_size])
    return next((damage for damage in found if damage is not None), None)
