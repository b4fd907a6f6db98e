"""The model as a DeepSpeed pipeline: stage layers made from the single-device model's pieces."""

from __future__ import annotations

import functools

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn

from neox.config.derive import padded_vocab
from neox.config.partition import counted_pieces
from neox.config.schema import Config
from neox.model.gpt import build_piece, piece_names, takes_context
from neox.model.init import init_tensor
from neox.parallel.feed import Feed
from neox.parallel.groups import TensorGroup
from neox.parallel.loss import weighted_loss
from neox.parallel.plan import apply_plan
from neox.parallel.recompute import apply_recompute
from neox.parallel.stages import deal_by_weight, deal_uniform
from neox.parallel.topology import Topology


class StageLayer(nn.Module):
    """One piece of the model, sharded and initialised; its parameters carry the logical names of the whole model.

    The tensor-parallel plan is applied here because PipelineModule builds its layers in its own constructor.
    """

    def __init__(self, name: str, cfg: Config, tensor: TensorGroup, feed: Feed) -> None:
        super().__init__()
        self.name, self.feed, model = name, feed, cfg.model
        with torch.device("meta"):
            piece = build_piece(name, model, padded_vocab(model))
        outer, _, index = name.partition(".")
        self.add_module(outer, nn.ModuleDict({index: piece}) if index else piece)
        apply_plan(self, tensor, functools.partial(init_tensor, cfg=model, seed=cfg.train.seed))
        if index:
            apply_recompute(piece, cfg.parallel.recompute)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens [b, s] for the embedding, else activations [b, s, h]; the head only hands on both its factors."""
        if self.name == "head":
            return head_factors(x, self.get_parameter("head.weight"))
        piece = self.get_submodule(self.name)
        out: Tensor = piece(x, self.feed.context) if takes_context(self.name) else piece(x)
        return out


def head_factors(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of the logits, whose product is a part of the loss.

    DeepSpeed opens each backward pass by a hook on what the last stage returns, and forgets gradients that were there
    before. A view of the weight has its hook run before the weight's own gradient is stored; the weight itself has not.
    """
    return x, weight.view_as(weight)


def tied_head(layer: StageLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The head as a second use of the embedding."""
    return head_factors(x, layer.get_parameter("embed.weight"))


class PipelineModel(PipelineModule):
    """GPT dealt to pipeline stages."""

    def __init__(self, cfg: Config, topology: Topology, tensor: TensorGroup, feed: Feed) -> None:
        self._boundaries = deal_blocks(cfg, topology.pp)
        self._first_block = piece_names(cfg.model).index("layers.0")
        grid = PipeModelDataParallelTopology(num_pp=topology.pp, num_mp=topology.tp, num_dp=topology.dp)
        loss = functools.partial(weighted_loss, tensor=tensor, softcap=cfg.model.logit_softcap)
        super().__init__(layer_specs(cfg, tensor, feed), topology=grid, loss_fn=loss)
        self._feed = feed

    def forward(self, forward_input: Tensor) -> Tensor:
        """One micro-batch through this stage."""
        self._feed.advance()
        out: Tensor = super().forward(forward_input)
        return out

    def _partition_layers(self, method: str = "") -> None:
        """Replaces DeepSpeed's: it may leave the embedding alone in a stage, whose optimizer then lacks the group of
        undecayed parameters, and the norm's collectives, one per group, no longer pair up across stages.
        """
        first, *inner, last = (self._first_block + block for block in self._boundaries)
        self.parts = [first - self._first_block, *inner, last + 2]  # embed before the blocks; norm and head after
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])


def layer_specs(cfg: Config, tensor: TensorGroup, feed: Feed) -> list[LayerSpec]:
    """One specification per piece; tied, the head is a second use of the embedding."""
    specs = []
    for name in piece_names(cfg.model):
        arguments = (cfg, tensor, feed)
        if cfg.model.tie_embeddings and name in ("embed", "head"):
            forward = tied_head if name == "head" else None
            specs.append(
                TiedLayerSpec(
                    "embed", StageLayer, "embed", *arguments, forward_fn=forward, tied_weight_attr=["embed.weight"]
                )
            )
        else:
            specs.append(LayerSpec(StageLayer, name, *arguments))
    return specs


def deal_blocks(cfg: Config, num_stages: int) -> list[int]:
    """First block of each stage, and the number of blocks at the end."""
    if cfg.parallel.partition == "uniform":
        return deal_uniform(cfg.model.num_layers, num_stages)
    if cfg.parallel.partition != "parameters":
        return deal_by_weight(counted_pieces(cfg.model, cfg.parallel.partition), num_stages)
    with torch.device("meta"):
        pieces = [build_piece(name, cfg.model, padded_vocab(cfg.model)) for name in piece_names(cfg.model)]
    *front, norm, head = (sum(p.numel() for p in piece.parameters()) for piece in pieces)
    blocks = front[-cfg.model.num_layers :]
    blocks[0] += sum(front) - sum(blocks)  # embedding and positions
    blocks[-1] += norm + head
    return deal_by_weight(blocks, num_stages)
