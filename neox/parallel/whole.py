"""The model without a pipeline: all of it on each replica, and the steps that DeepSpeed's plain engine makes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neox.config.schema import Config
from neox.model.gpt import piece_names
from neox.parallel.feed import Feed, Loaded
from neox.parallel.groups import TensorGroup
from neox.parallel.loss import weighted_loss
from neox.parallel.pipeline import StageLayer, tied_head


class WholeModel(nn.Module):
    """All stage layers one after the other, and the loss."""

    def __init__(self, cfg: Config, tensor: TensorGroup, feed: Feed, finish: Callable[[nn.Module], Any]) -> None:
        """`finish` is called with each layer before the next is made."""
        super().__init__()
        self._feed, self._is_tied = feed, cfg.model.tie_embeddings

        def layer(name: str) -> StageLayer:
            made = StageLayer(name, cfg, tensor, feed)
            finish(made)
            return made

        embed, *others = piece_names(cfg.model)
        self.embed = layer(embed)
        self.others = nn.ModuleList(layer(name) for name in others if not (name == "head" and self._is_tied))
        self._loss = functools.partial(weighted_loss, tensor=tensor, softcap=cfg.model.logit_softcap)

    def forward(self, tokens: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a micro-batch of tokens [b, s]; `targets` are those of `weighted_loss`."""
        self._feed.advance()
        x = self.embed(tokens)
        for layer in self.others:
            x = layer(x)
        return self._loss(tied_head(self.embed, x) if self._is_tied else x, targets)


class WholeSteps:
    """Training and evaluation under the names that DeepSpeed's pipeline engine has for them."""

    def __init__(self, engine: Any) -> None:
        """`engine`: DeepSpeed's, of a WholeModel."""
        self._engine = engine
        self._loss = torch.zeros((), device=engine.device)

    def train_batch(self, micro_batches: Iterator[Loaded]) -> Tensor:
        """One optimizer step; returns the mean loss of the global batch."""
        self._engine.train()
        num_micro_batches = self._engine.gradient_accumulation_steps()
        self._loss = torch.zeros_like(self._loss)
        for _ in range(num_micro_batches):
            loss = self._forward(micro_batches)
            self._loss += loss.detach() / num_micro_batches
            self._engine.backward(loss)
            self._engine.step()  # acts once all have come
        return self._aggregate_total_loss()

    @torch.no_grad()
    def eval_batch(self, micro_batches: Iterator[Loaded], num_micro_batches: int) -> Tensor:
        """Mean loss over `num_micro_batches` of every replica."""
        self._engine.eval()
        losses = [self._forward(micro_batches) for _ in range(num_micro_batches)]
        return self._mean_over_replicas(torch.stack(losses).mean())

    def _aggregate_total_loss(self) -> Tensor:
        """Mean over the replicas of the loss so far; once all micro-batches have come, that of the step."""
        return self._mean_over_replicas(self._loss)

    def _forward(self, micro_batches: Iterator[Loaded]) -> Tensor:
        loss: Tensor = self._engine(*next(micro_batches))
        return loss

    def _mean_over_replicas(self, loss: Tensor) -> Tensor:
        group, total = self._engine.mpu.get_data_parallel_group(), loss.clone()
        dist.all_reduce(total, group=group)
        return total / dist.get_world_size(group)
