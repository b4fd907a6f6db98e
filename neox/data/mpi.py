"""Tokenising as one job of MPI ranks, for sites that dislike many small jobs: each rank a shard, rank 0 merges them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpi4py import MPI

from neox.config.errors import UserError
from neox.data.indexed import bin_path, idx_path
from neox.data.manifest import manifest_path, merge_prefixes
from neox.data.prepare import Encoding, tokenize


def tokenize_by_ranks(inputs: Sequence[Path], encoding: Encoding, output: Path, workers: int) -> dict[str, Any] | None:
    """As `tokenize`, the same files whatever the number of ranks; the manifest on rank 0, None on the others.

    Raises:
        UserError: on rank 0, the first that a rank has. The other ranks end with the exit code 2 of one.
    """
    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    shards = [output.with_name(f".{output.name}.{index}-of-{size}") for index in range(size)]
    try:
        _all_or_none(world, lambda: tokenize(inputs, encoding, shards[rank], (rank, size), workers))
        return _all_or_none(world, lambda: merge_prefixes(shards, output) if rank == 0 else None)
    finally:
        for path in (bin_path(shards[rank]), idx_path(shards[rank]), manifest_path(shards[rank])):
            path.unlink(missing_ok=True)


def _all_or_none(world: MPI.Intracomm, step: Any) -> Any:
    """What a step gives, once every rank has made it; a failure of one ends all."""
    error = result = None
    try:
        result = step()
    except UserError as wrong:
        error = str(wrong)
    except Exception:
        traceback.print_exc()
        world.Abort(1)  # the others would wait for ever
    errors = [text for text in world.allgather(error) if text]
    if errors and world.Get_rank() == 0:
        raise UserError(errors[0])
    if errors:
        sys.exit(2)
    return result
