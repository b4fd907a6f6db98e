"""Messages carried by torch.distributed: gloo on CPUs, NCCL or RCCL on GPUs, as training has it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from neox.bench.messages import Message
from neox.parallel import groups
from neox.parallel.topology import Topology


class DistributedCarrier:
    """Ranks of the process group that the environment describes; messages are fp32."""

    def __init__(self, topology: Topology) -> None:
        """Raises UserError unless the topology has as many ranks as there are processes."""
        groups.initialize()
        self.rank = dist.get_rank()
        topology.check_world_size(dist.get_world_size())
        self.device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        colors = [topology.colors(rank) for rank in range(topology.world_size)]
        self.groups: dict[str, dist.ProcessGroup | None] = {"world": dist.group.WORLD}
        for axis in colors[0]:
            for color in sorted({of_rank[axis] for of_rank in colors}):  # every rank must make every group
                ranks = [rank for rank, of_rank in enumerate(colors) if of_rank[axis] == color]
                group = dist.new_group(ranks)
                if self.rank in ranks:
                    self.groups[axis] = group

    def prepare(self, message: Message) -> Callable[[], None]:
        """See `neox.bench.measure.Carrier`."""
        group = self.groups[message.axis]
        size, index = dist.get_world_size(group), dist.get_rank(group)
        share = max(1, message.num_bytes // 4 // size)
        whole, other = (torch.ones(share * size, device=self.device) for _ in range(2))
        part = torch.ones(share, device=self.device)
        following, previous = (index + 1) % size, (index - 1) % size

        def send_recv() -> None:
            pair = [
                dist.P2POp(dist.isend, whole, group=group, group_peer=following),
                dist.P2POp(dist.irecv, other, group=group, group_peer=previous),
            ]
            for work in dist.batch_isend_irecv(pair):
                work.wait()

        send: Callable[[], object] = {
            "all_reduce": lambda: dist.all_reduce(whole, group=group),
            "all_gather": lambda: dist.all_gather_into_tensor(other, part, group=group),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole, group=group),
            "all_to_all": lambda: dist.all_to_all_single(other, whole, group=group),
            "send_recv": send_recv,
        }[message.operation]

        def run() -> None:
            send()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    def barrier(self) -> None:
        """See `neox.bench.measure.Carrier`."""
        dist.barrier()

    def largest(self, value: float) -> float:
        """See `neox.bench.measure.Carrier`."""
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return float(shared)

    def close(self) -> None:
        """Ends the process group, whose threads may otherwise abort a process that ends."""
        dist.destroy_process_group()
