"""Micro-batches on their way into the engine: the context for each forward pass, and each one's weight in the loss."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from neox.config.schema import Config
from neox.model.context import PLAIN, Context, MicroBatch

Loaded = tuple[Tensor, tuple[Tensor, Tensor]]
"""(tokens, (labels, weight)): what the engine loads for one forward pass."""


def needs_context(cfg: Config) -> bool:
    """Whether every stage must see the micro-batches, and not only those that hold the embedding and the loss."""
    is_masked = cfg.data.mask_documents or cfg.data.reset_positions
    return is_masked or bool(cfg.model.hidden_dropout or cfg.model.attention_dropout)


class Feed:
    """Gives every piece of this rank the context of the micro-batch that it works on.

    A stage passes its micro-batches forward in their order, whatever else happens between two of them, so counting the
    passes is enough. What is made again in backward has been given its context then.
    """

    def __init__(self, cfg: Config) -> None:
        self._is_mean_of_tokens = cfg.compat == "none"
        self._waiting: deque[Context] = deque()
        self.context = PLAIN
        """Of the forward pass in progress."""

    def load(
        self,
        micro_batches: Iterator[tuple[Tensor, Tensor] | MicroBatch],
        count: int,
        device: torch.device,
        data_group: dist.ProcessGroup,
    ) -> Iterator[Loaded]:
        """The next `count` micro-batches, or none where this stage is given none; their contexts wait for `advance`."""
        batches = [MicroBatch(*each) for each in islice(micro_batches, count)]
        # All before the first pass: each copy to a GPU waits until it has done what it was given before.
        self._waiting = deque(batch.context.to(device) for batch in batches)
        if not batches:
            return iter(())
        tokens, labels = ([part.to(device) for part in parts] for parts in list(zip(*batches, strict=True))[:2])
        weights = loss_weights(labels, data_group) if self._is_mean_of_tokens else torch.ones(count, device=device)
        return iter([(x, (y, weight)) for x, y, weight in zip(tokens, labels, weights, strict=True)])

    def advance(self) -> None:
        """Begins a forward pass."""
        # None is kept here: its masks are as large as a head's scores, and go with its backward.
        self.context = self._waiting.popleft() if self._waiting else PLAIN


def loss_weights(labels: Sequence[Tensor], data_group: dist.ProcessGroup) -> Tensor:
    """[micro-batches] fp32, by which to multiply each one's mean loss over the tokens that count.

    The mean over all micro-batches of all ranks in the group is then the mean over all tokens that count.
    """
    counts = torch.stack([(each >= 0).sum() for each in labels])
    total = counts.sum()
    dist.all_reduce(total, group=data_group)
    return counts * (len(labels) * dist.get_world_size(data_group)) / total.clamp(min=1)
