"""The whole model dealt to tensor-parallel ranks without an engine, for generation: every rank has all logits."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neox.config.derive import check_model
from neox.config.schema import Config, ModelConfig, ParallelConfig
from neox.model.gpt import GPT
from neox.parallel import groups
from neox.parallel.collectives import broadcast_json
from neox.parallel.groups import TensorGroup
from neox.parallel.plan import apply_plan
from neox.parallel.topology import Topology

PATIENCE = datetime.timedelta(days=365)
"""How long ranks wait for what a person types; of computation they wait for minutes."""


class WholeLogits(nn.Module):
    """The head, whose rows of the vocabulary are dealt to the ranks: input equal on all, and output too."""

    def __init__(self, part: nn.Module, tensor: TensorGroup) -> None:
        super().__init__()
        self.part, self.tensor = part, tensor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.part(x)
        parts = [torch.empty_like(logits) for _ in range(self.tensor.size)]
        dist.all_gather(parts, logits.contiguous(), group=self.tensor.group)
        return torch.cat(parts, -1)


def join_ranks(model: ModelConfig, world_size: int) -> TensorGroup:
    """The group of all ranks of a launch, which every one of them calls; alone it needs no process group.

    Raises:
        UserError: the model cannot be dealt to so many.
    """
    parallel = ParallelConfig(dp=1, tp=world_size, pp=1)
    check_model(model, parallel)
    if world_size == 1:
        return TensorGroup()
    groups.initialize()
    return groups.tensor_group(Topology(1, world_size, 1), Config(model, parallel))


def deal(model: GPT, tensor: TensorGroup, load: Callable[[str, tuple[int, ...]], Tensor]) -> None:
    """Gives the model, which may be on the meta device, this rank's weights in place; `load` as of `apply_plan`."""
    apply_plan(model, tensor, load)
    if model.cfg.tie_embeddings:
        model.head.weight = model.embed.weight
    if tensor.size > 1:
        model.head = WholeLogits(model.head, tensor)


def patient_group() -> dist.ProcessGroup | None:
    """All ranks of the launch, which call this together, for waiting as long as a person thinks; None: alone."""
    return dist.new_group(backend="gloo", timeout=PATIENCE) if dist.is_initialized() else None


def first_says(value: Any, group: dist.ProcessGroup | None) -> Any:
    """The JSON-able value of the first rank, on every rank of `patient_group`."""
    return value if group is None else broadcast_json(value, torch.device("cpu"), group=group)
