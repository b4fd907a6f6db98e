"""Process groups: starting torch.distributed from the environment, and this rank's place on the tensor axis."""

from __future__ import annotations

import dataclasses
import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from neox.config.errors import UserError
from neox.config.schema import Config
from neox.config.shape import num_kv_copies
from neox.parallel.topology import Topology

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets for every rank."""

PATIENCE = datetime.timedelta(hours=1)
"""How long ranks wait for each other: as long as the watchdog lets them before the first step. NCCL's own 10 minutes
would end a start that makes index maps or fetches a checkpoint."""


@dataclass(frozen=True)
class TensorGroup:
    """The ranks that hold the shards of one layer, and which of them this is."""

    size: int = 1
    index: int = 0
    group: dist.ProcessGroup | None = None
    is_sequence_sharded: bool = False
    """Sequence parallelism: outside attention and MLP each rank has its stretch of every sequence alone."""
    copies: TensorGroup | None = None
    """Those of the ranks that hold the same key-value head; None where no two do, or all (multi-query attention)."""

    def part(self, whole: range) -> range:
        """This rank's share of consecutive things that are dealt evenly."""
        share = len(whole) // self.size
        return whole[self.index * share : (self.index + 1) * share]


def initialize() -> None:
    """Joins the process group that the environment describes; without a launcher, a group of one.

    gloo on CPUs, nccl on GPUs (one per rank, number LOCAL_RANK). Does nothing where a group exists already.

    Raises:
        UserError: only some of the launcher's variables are set, or the rank does not see its GPU.
    """
    if dist.is_initialized():
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing and "WORLD_SIZE" in os.environ and os.environ["WORLD_SIZE"] != "1":
        raise UserError(f"environment: WORLD_SIZE is set but {', '.join(missing)} is not; a launcher sets all of them")
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    device = None
    if torch.cuda.is_available():
        if local_rank >= (num_seen := torch.cuda.device_count()):
            raise UserError(
                f"environment: LOCAL_RANK = {local_rank}, but this rank sees {num_seen} GPU; where each rank is shown "
                "its own alone, LOCAL_RANK must be 0"
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    backend = "gloo" if device is None else "nccl"
    if missing:
        # A store inside the process: no port that another job on this machine could take.
        store = dist.HashStore()
        dist.init_process_group(backend, timeout=PATIENCE, store=store, rank=0, world_size=1, device_id=device)
    else:
        dist.init_process_group(backend, timeout=PATIENCE, device_id=device)


def tensor_group(topology: Topology, cfg: Config) -> TensorGroup:
    """Creates the groups of the tensor axis, which every rank must do together, and returns this rank's."""
    num_copies = num_kv_copies(cfg.model, topology.tp)
    copies = _join(batched(topology.tp_groups(), num_copies)) if num_copies > 1 else None
    mine = _join(topology.tp_groups()) if topology.tp > 1 else TensorGroup()
    return dataclasses.replace(
        mine, is_sequence_sharded=cfg.parallel.sequence_parallel and mine.size > 1, copies=copies
    )


def batched(all_ranks: list[list[int]], size: int) -> list[list[int]]:
    """Each list cut into lists of `size`."""
    return [ranks[i : i + size] for ranks in all_ranks for i in range(0, len(ranks), size)]


def _join(all_ranks: list[list[int]]) -> TensorGroup:
    """One group for each list of ranks, of which this rank's is returned."""
    rank, mine = dist.get_rank(), TensorGroup()
    for ranks in all_ranks:
        group = dist.new_group(ranks)
        if rank in ranks:
            mine = TensorGroup(len(ranks), ranks.index(rank), group)
    return mine
