"""Tokenising as one job of MPI ranks, for sites that dislike many small jobs: each rank a shard, rank 0 merges them."""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpi4py import MPI

from neox.config.errors import UserError
from neox.data.manifest import manifest_path, merge_prefixes
from neox.data.prepare import Encoding, tokenize


def tokenize_by_ranks(inputs: Sequence[Path], encoding: Encoding, output: Path, workers: int) -> dict[str, Any] | None:
    """As `tokenize`, the same files whatever the number of ranks; the manifest on rank 0, None on the others.

    Where the job is killed, the shards that are finished stay, hidden beside the output: started again, it goes on; the
    end of a job with other inputs or another number of ranks removes them.

    Raises:
        UserError: on rank 0, the first that a rank has. The other ranks end with the exit code 2 of one.
    """
    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    key = world.bcast(_key(inputs, encoding) if rank == 0 else None)
    shards = [output.with_name(f".{output.name}.{key}.{index}-of-{size}") for index in range(size)]

    def make_shard() -> None:
        if not manifest_path(shards[rank]).exists():  # the last of its files to appear
            tokenize(inputs, encoding, shards[rank], (rank, size), workers)

    errors, _ = _everywhere(world, make_shard)
    manifest = None
    if not errors:
        errors, manifest = _everywhere(world, lambda: merge_prefixes(shards, output) if rank == 0 else None)
    if rank == 0:
        _remove_shards(output)
    if errors and rank == 0:
        raise UserError(errors[0])
    if errors:
        sys.exit(2)
    return manifest


def _remove_shards(output: Path) -> None:
    """Of this job, and of those that were killed and had other inputs or another number of ranks."""
    shard = re.compile(rf"\.{{1,2}}{re.escape(output.name)}\.[0-9a-f]{{16}}\.\d+-of-\d+\..+")
    for path in output.parent.glob(".*"):
        if shard.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _key(inputs: Sequence[Path], encoding: Encoding) -> str:
    """Names what the shards are made of, by the sizes and dates of files."""
    paths = [file for path in inputs for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    found = [path.stat() for path in (*paths, encoding.tokenizer) if path.exists()]
    known = [[str(path) for path in paths], [(each.st_size, each.st_mtime_ns) for each in found], encoding]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def _everywhere(world: MPI.Intracomm, step: Callable[[], Any]) -> tuple[list[str], Any]:
    """The mistakes of the user that ranks met in a step, known to all once every rank has made it; what it gave."""
    error = result = None
    try:
        result = step()
    except UserError as wrong:
        error = str(wrong)
    except Exception:
        traceback.print_exc()
        world.Abort(1)  # the others would wait for ever
    return [text for text in world.allgather(error) if text], result
