"""Bringing a run's newest checkpoint back from where it was copied to, to a machine that has none or an older one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from neox.checkpoint import generation
from neox.checkpoint import manifest as manifests
from neox.checkpoint.mirror import METRICS, complete_steps
from neox.checkpoint.ranks import Ranks
from neox.checkpoint.store import Store, flush, step_name
from neox.config.errors import UserError
from neox.data import s3
from neox.data.fetch import Download, fetch
from neox.data.s3 import Place


def restore(store: Store, source: Place, ranks: Ranks, say: Callable[[str], None]) -> None:
    """Fetches the newest complete copy that is newer than every checkpoint in the store; every rank calls it.

    Each file is fetched and hashed by one rank. A copy that is damaged is passed over, and `say` tells of it. Where the
    object store does not answer, a run that has checkpoints goes on from those.

    Raises:
        UserError: on every rank: the object store refuses or does not answer, and there is no checkpoint here.
    """
    held = ranks.broadcast(store.latest() if ranks.rank == 0 else None)
    steps, mistake = None, None
    if ranks.rank == 0:
        try:
            steps = [step for step in complete_steps(source) if held is None or step > held]
        except (OSError, UserError) as error:
            mistake = f"checkpoint.mirror: {error}"
            if held is not None:
                say(f"warning: {mistake}; going on from what is here")
                steps, mistake = [], None
    ranks.agree(mistake)
    for step in reversed(ranks.broadcast(steps)):
        damage = _fetch_together(store, source, step, ranks)
        if damage is None:
            say(f"fetched the checkpoint of step {step} from {source}")
            if ranks.rank == 0 and (mistake := _attempt(lambda: _fetch_metrics(store, source))):
                say(f"warning: the metrics up to there are not here: {mistake}")
            return
        say(f"warning: the copy of step {step} is not used: {damage}")
    if steps and held is None:
        ranks.agree(f"checkpoint.mirror: every copy in {source} is damaged or cannot be fetched")


def _fetch_together(store: Store, source: Place, step: int, ranks: Ranks) -> str | None:
    """Each rank its share of the files, then the first makes them a checkpoint; returns what was wrong."""
    folder, origin = store.temporary(step), source / step_name(step)
    try:
        ranks.agree(_attempt(lambda: _prepare(folder, origin)) if ranks.rank == 0 else None)
        ranks.agree(_attempt(lambda: _fetch_share(folder, origin, ranks)))
        ranks.agree(_attempt(lambda: _commit(store, step)) if ranks.rank == 0 else None)
    except UserError as error:
        if ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        return str(error)
    return None


def _attempt(action: Callable[[], None]) -> str | None:
    """What went wrong."""
    try:
        action()
    except (OSError, UserError) as error:
        return str(error)
    return None


def _prepare(folder: Path, origin: Place) -> None:
    folder.mkdir(parents=True)
    (folder / manifests.NAME).write_bytes(s3.read(origin / manifests.NAME))


def _fetch_share(folder: Path, origin: Place, ranks: Ranks) -> None:
    for file in manifests.read(folder).files[ranks.rank :: ranks.world_size]:
        fetch(Download(str(origin / file.name), folder / file.name, file.sha256, file.size, connections=4))


def _commit(store: Store, step: int) -> None:
    folder = store.temporary(step)
    flush(folder / manifests.NAME)
    flush(folder)
    generation.check(store)
    folder.rename(store.path(step))
    flush(store.folder)


def _fetch_metrics(store: Store, source: Place) -> None:
    """Those here end before the checkpoint, which is newer than all that were here."""
    if METRICS in s3.keys(source):
        fetch(Download(str(source / METRICS), store.folder.parent / METRICS))
