"""What DeepSpeed is given to train: this rank's part of the model, made for its engine, and the parameters in it."""

from __future__ import annotations

from collections.abc import Iterator

import deepspeed
import torch
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology
from torch import nn

from neox.config.errors import UserError
from neox.config.schema import Config
from neox.parallel.feed import Feed
from neox.parallel.groups import TensorGroup
from neox.parallel.pipeline import PipelineModel, StageLayer
from neox.parallel.settings import deepspeed_config
from neox.parallel.topology import Topology
from neox.parallel.whole import WholeModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_module(
    cfg: Config, topology: Topology, tensor: TensorGroup, feed: Feed
) -> tuple[nn.Module, PipelineParallelGrid | None]:
    """This rank's part of the model, and the process groups that DeepSpeed asks for where it is no pipeline."""
    if topology.pp > 1:
        return PipelineModel(cfg, topology, tensor, feed), None
    grid = PipelineParallelGrid(PipeModelDataParallelTopology(num_pp=1, num_mp=topology.tp, num_dp=topology.dp))

    def deal(layer: nn.Module) -> None:
        """Leaves each replica its part of a layer, so that none ever has the whole model (ZeRO-3)."""
        if cfg.parallel.zero_stage == 3:
            group, settings = grid.get_data_parallel_group(), deepspeed_config(cfg)
            layer.to(DTYPES[cfg.train.precision])
            deepspeed.zero.Init(module=layer, data_parallel_group=group, config_dict_or_path=settings, mpu=grid)

    return WholeModel(cfg, tensor, feed, finish=deal), grid


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """This rank's parameters by logical name; a tied weight once."""
    for layer in module.modules():
        if isinstance(layer, StageLayer):
            yield from layer.named_parameters()


def check_precision(cfg: Config) -> None:
    """Refuses, by UserError, what DeepSpeed cannot do in fp16."""
    if cfg.train.precision != "fp16":
        return
    if not torch.cuda.is_available():
        raise UserError("train.precision = fp16 needs a GPU; on CPUs use fp32 or bf16")
    if cfg.model.tie_embeddings and cfg.parallel.pp > 1:
        # The tied gradients' sum over stages reads weight.grad, which fp32 accumulation of fp16 has emptied by then.
        raise UserError(
            "train.precision = fp16 with model.tie_embeddings and parallel.pp > 1 is not possible; use bf16"
        )
