"""Saving: each rank writes its file into a hidden folder, and one atomic rename makes the folder a checkpoint."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file

from neox.checkpoint import manifest as manifests
from neox.checkpoint.manifest import FileInfo, Manifest, SliceInfo, TensorInfo
from neox.checkpoint.store import Store, flush
from neox.parallel.pieces import Piece


class Ranks(Protocol):
    """What saving needs of the process group; `neox.parallel.engine.Engine` has it."""

    @property
    def rank(self) -> int:
        """Global rank of this process."""
        ...

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        ...


class SaveError(OSError):
    """A checkpoint could not be written; nothing of it remains and the earlier ones are intact."""


def copied(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces with their values copied to host memory, so that training may go on while they are written."""
    return [dataclasses.replace(piece, tensor=piece.tensor.detach().to("cpu", copy=True)) for piece in pieces]


def save(store: Store, ranks: Ranks, step: int, pieces: Iterable[Piece], state: dict[str, Any]) -> None:
    """Writes and commits the checkpoint of `step`; every rank calls it, and returns when it stands or has failed.

    Raises:
        SaveError: on every rank, when one of them could not write (a full disk, say).
    """
    error: Exception | None = None
    try:
        write_rank(store.temporary(step), ranks.rank, pieces)
    except (OSError, SafetensorError) as caught:
        error = caught
    if not ranks.any_rank(error is not None) and ranks.rank == 0:
        try:
            commit(store, step, state)
        except OSError as caught:
            error = caught
    if ranks.any_rank(error is not None):
        if ranks.rank == 0:
            shutil.rmtree(store.temporary(step), ignore_errors=True)
        reason = str(error) if error else "another rank could not write its part"
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        raise SaveError(number, f"checkpoint not saved, earlier ones are intact: {reason}", str(store.path(step)))


def write_rank(folder: Path, rank: int, pieces: Iterable[Piece]) -> None:
    """Writes and flushes one rank's file, and beside it the JSON that `commit` gathers.

    `pieces` are on the CPU and do not change meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = [(slice_of(piece), piece) for piece in pieces if piece.numel]
    path = folder / f"rank_{rank:05d}.safetensors"
    save_file({item.key: piece.tensor for item, piece in held}, path)
    flush(path)
    tensors = {(p.kind, p.name): TensorInfo(p.kind, p.name, tuple(p.global_shape), "float32") for _, p in held}
    info = FileInfo(
        name=path.name,
        size=path.stat().st_size,
        sha256=manifests.sha256(path),
        tensors=tuple(tensors.values()),
        slices=tuple(item for item, _ in held),
    )
    path.with_suffix(".json").write_text(json.dumps(dataclasses.asdict(info)))


def commit(store: Store, step: int, state: dict[str, Any]) -> None:
    """Makes what all ranks have written the checkpoint of `step`; one process, after all of them."""
    folder = store.temporary(step)
    parts = sorted(folder.glob("rank_*.json"))
    files = tuple(manifests.file_from_dict(json.loads(part.read_text())) for part in parts)
    manifest = Manifest(step, state, files)
    manifests.check_coverage(manifest)
    manifests.write(manifest, folder)
    for part in parts:
        part.unlink()
    flush(folder / manifests.NAME)
    flush(folder)
    folder.rename(store.path(step))
    flush(store.folder)


def slice_of(piece: Piece) -> SliceInfo:
    """Coordinates of a piece."""
    return SliceInfo(piece.kind, piece.name, piece.dim, piece.shard_index, piece.num_shards, piece.start, piece.numel)
