"""Where the tensors of a parameter group lie in a rank's flat partition, for optimizers that look at whole tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neox.parallel.groups import TensorGroup
from neox.parallel.plan import sharded_dim


@dataclass(frozen=True)
class Fragment:
    """What this rank's partition holds of its shard of one logical tensor; every rank lists every tensor."""

    name: str
    shape: tuple[int, ...]
    """Of the shard."""
    dim: int | None
    """Dimension that is dealt to the tensor-parallel ranks; None: the shard is the whole tensor."""
    start: int
    """First element held, counted in the flattened shard."""
    numel: int
    """0: the partition holds nothing of it."""
    offset: int
    """Where it begins in the partition."""
    is_split: bool = False
    """Whether several data-parallel ranks hold a part of the shard."""

    def of(self, flat: Tensor) -> Tensor:
        """The view of a tensor like the partition that belongs to this fragment."""
        return flat[self.offset : self.offset + self.numel]

    def spread(self, flat: Tensor) -> Tensor:
        """[shape] with what this rank holds of the shard, and zeros."""
        shard = torch.zeros(math.prod(self.shape), dtype=flat.dtype, device=flat.device)
        shard[self.start : self.start + self.numel] = self.of(flat)
        return shard.view(self.shape)

    def cut(self, shard: Tensor) -> Tensor:
        """The held elements of a tensor of the shard's shape, one-dimensional: the reverse of `spread`."""
        return shard.reshape(-1)[self.start : self.start + self.numel]

    def global_shape(self, num_shards: int) -> tuple[int, ...]:
        """Shape of the logical tensor."""
        return tuple(size * num_shards if dim == self.dim else size for dim, size in enumerate(self.shape))


@dataclass(frozen=True)
class Ranks:
    """With whom a rank shares a parameter group: those with other parts of its shards, and those with other shards."""

    data: dist.ProcessGroup
    tensor: TensorGroup

    def sum_parts(self, tensors: list[Tensor]) -> None:
        """Sums each tensor over the data-parallel ranks, in place, in one message."""
        _sum(tensors, self.data)

    def sum_shards(self, tensors: list[Tensor]) -> None:
        """Sums each tensor over the tensor-parallel ranks, in place, in one message."""
        if self.tensor.size > 1:
            _sum(tensors, self.tensor.group)

    def join(self, shard: Tensor, dim: int | None) -> Tensor:
        """The whole tensor from every rank's shard along `dim`."""
        if dim is None or self.tensor.size == 1:
            return shard
        shards = [torch.empty_like(shard) for _ in range(self.tensor.size)]
        dist.all_gather(shards, shard.contiguous(), group=self.tensor.group)
        return torch.cat(shards, dim)

    def own(self, whole: Tensor, dim: int | None) -> Tensor:
        """This rank's shard: the reverse of `join`."""
        return whole if dim is None else whole.chunk(self.tensor.size, dim)[self.tensor.index]


def fragments(parameters: Iterable[tuple[str, nn.Parameter]], ranks: Ranks) -> dict[str, Fragment]:
    """The fragment of each named parameter that DeepSpeed has dealt to flat partitions (ZeRO 1 and 2)."""
    found = [(_fragment(name, parameter), parameter.device) for name, parameter in parameters]
    is_part = torch.tensor([0 < item.numel < math.prod(item.shape) for item, _ in found], dtype=torch.int32)
    is_part = is_part.to(found[0][1])
    dist.all_reduce(is_part, group=ranks.data)
    counts = is_part.tolist()
    return {item.name: dataclasses.replace(item, is_split=n > 0) for (item, _), n in zip(found, counts, strict=True)}


def _fragment(name: str, parameter: nn.Parameter) -> Fragment:
    held = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's map into its flat partition
    start, numel, offset = 0, 0, 0
    if held is not None:
        start, numel = held.lp_fragment_address.start, held.lp_fragment_address.numel
        offset = held.hp_fragment_address.start
    return Fragment(name, tuple(parameter.shape), sharded_dim(name), start, numel, offset)


def _sum(tensors: list[Tensor], group: dist.ProcessGroup | None) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view(tensor.shape))
