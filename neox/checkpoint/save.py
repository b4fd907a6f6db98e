"""Writing: each rank writes its file into a hidden folder, and one atomic rename makes the folder a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from neox.checkpoint import generation, tensor_file
from neox.checkpoint import manifest as manifests
from neox.checkpoint.manifest import FileInfo, Manifest, SliceInfo, TensorInfo
from neox.checkpoint.store import Store, flush
from neox.checkpoint.tensor_file import Entry
from neox.parallel.pieces import Piece


def write_rank(folder: Path, rank: int, pieces: Iterable[Piece]) -> None:
    """Writes and flushes one rank's file, and then the JSON that tells `commit` of it.

    `pieces` are fp32 on the CPU and do not change meanwhile.
    """
    held = [piece for piece in pieces if piece.numel]
    tensors = {(p.kind, p.name): TensorInfo(p.kind, p.name, tuple(p.global_shape), "float32") for p in held}
    blocks = (piece.tensor for piece in held)
    write_slices(folder, rank, tuple(tensors.values()), tuple(map(slice_of, held)), blocks)


def write_slices(
    folder: Path, rank: int, tensors: tuple[TensorInfo, ...], slices: tuple[SliceInfo, ...], blocks: Iterable[Tensor]
) -> None:
    """As `write_rank`, with the data apart: fp32 on the CPU, laid end to end the slices in their order."""
    path = folder / f"rank_{rank:05d}.safetensors"
    size, sha256 = tensor_file.write(path, [Entry(item.key, "F32", (item.numel,)) for item in slices], blocks)
    info = FileInfo(path.name, size, sha256, tensors, slices)
    unnamed = folder / f".{path.stem}.json"
    unnamed.write_text(json.dumps(dataclasses.asdict(info)))
    unnamed.rename(path.with_suffix(".json"))  # whoever waits for it finds it whole


def parts(folder: Path) -> list[Path]:
    """The JSON files of the ranks that have written theirs."""
    return sorted(folder.glob("rank_*.json"))


def commit(store: Store, step: int, state: dict[str, Any]) -> None:
    """Makes what all ranks have written the checkpoint of `step`; one process, after all of them.

    Raises:
        FencedError: a later start of the run has taken the store over.
    """
    folder = store.temporary(step)
    found = parts(folder)
    files = tuple(manifests.file_from_dict(json.loads(part.read_text())) for part in found)
    manifest = Manifest(step, state, files)
    manifests.check_coverage(manifest)
    manifests.write(manifest, folder)
    for part in found:
        part.unlink()
    flush(folder / manifests.NAME)
    flush(folder)
    generation.check(store)
    folder.rename(store.path(step))
    flush(store.folder)


def slice_of(piece: Piece) -> SliceInfo:
    """Coordinates of a piece."""
    return SliceInfo(piece.kind, piece.name, piece.dim, piece.shard_index, piece.num_shards, piece.start, piece.numel)
