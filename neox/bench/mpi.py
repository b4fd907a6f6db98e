"""Messages carried by MPI: the library that the launcher started these ranks with, through mpi4py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from neox.bench.messages import Message
from neox.parallel.topology import Topology


class MpiCarrier:
    """Ranks of MPI's world; an all-reduce sums fp32, the other operations move bytes that nobody looks at."""

    def __init__(self, topology: Topology) -> None:
        """Raises UserError unless the topology has as many ranks as MPI's world."""
        self.world = MPI.COMM_WORLD
        self.rank = self.world.Get_rank()
        topology.check_world_size(self.world.Get_size())
        self.groups: dict[str, MPI.Comm] = {"world": self.world}
        for axis, color in topology.colors(self.rank).items():
            self.groups[axis] = self.world.Split(color, self.rank)

    def prepare(self, message: Message) -> Callable[[], None]:
        """See `neox.bench.measure.Carrier`."""
        group = self.groups[message.axis]
        size, index = group.Get_size(), group.Get_rank()
        share = max(1, message.num_bytes // 4 // size)
        whole, other = np.ones(share * size, np.float32), np.empty(share * size, np.float32)
        part = np.ones(share, np.float32)
        following, previous = (index + 1) % size, (index - 1) % size
        return {
            "all_reduce": lambda: group.Allreduce(whole, other),
            "all_gather": lambda: group.Allgather(part, other),
            "reduce_scatter": lambda: group.Reduce_scatter_block(whole, part),
            "all_to_all": lambda: group.Alltoall(whole, other),
            "send_recv": lambda: group.Sendrecv(whole, following, recvbuf=other, source=previous),
        }[message.operation]

    def barrier(self) -> None:
        """See `neox.bench.measure.Carrier`."""
        self.world.Barrier()

    def largest(self, value: float) -> float:
        """See `neox.bench.measure.Carrier`."""
        return float(self.world.allreduce(value, MPI.MAX))

    def close(self) -> None:
        """Nothing to do: mpi4py ends MPI with the process."""
