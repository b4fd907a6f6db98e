"""Process groups: starting torch.distributed from the environment, and this rank's place on the tensor axis."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from neox.config.errors import UserError
from neox.parallel.topology import Topology

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets for every rank."""


@dataclass(frozen=True)
class TensorGroup:
    """The ranks that hold the shards of one layer, and which of them this is."""

    size: int = 1
    index: int = 0
    group: dist.ProcessGroup | None = None

    def part(self, whole: range) -> range:
        """This rank's share of consecutive things that are dealt evenly."""
        share = len(whole) // self.size
        return whole[self.index * share : (self.index + 1) * share]


def initialize() -> None:
    """Joins the process group that the environment describes; without a launcher, a group of one.

    gloo on CPUs, nccl on GPUs (one per rank, number LOCAL_RANK). Does nothing where a group exists already.

    Raises:
        UserError: only some of the launcher's variables are set.
    """
    if dist.is_initialized():
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing and "WORLD_SIZE" in os.environ and os.environ["WORLD_SIZE"] != "1":
        raise UserError(f"environment: WORLD_SIZE is set but {', '.join(missing)} is not; a launcher sets all of them")
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    device = None
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    backend = "gloo" if device is None else "nccl"
    if missing:
        # A store inside the process: no port that another job on this machine could take.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    else:
        dist.init_process_group(backend, device_id=device)


def tensor_group(topology: Topology) -> TensorGroup:
    """Creates the groups of the tensor axis, which every rank must do together, and returns this rank's."""
    rank, mine = dist.get_rank(), TensorGroup()
    if topology.tp == 1:
        return mine
    for ranks in topology.tp_groups():
        group = dist.new_group(ranks)
        if rank in ranks:
            mine = TensorGroup(topology.tp, ranks.index(rank), group)
    return mine
