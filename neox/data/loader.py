"""Micro-batches in GPT-NeoX's order, from any sample onward: tokens, labels, and what the model must know beside."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from kernels.attention import Documents
from neox.data.dataset import Dataset
from neox.data.whole import IGNORED
from neox.model.context import Context, MicroBatch, document_numbers, restarted_positions
from neox.model.dropout import sample_keys


@dataclass(frozen=True)
class Ends:
    """What changes at the ends of documents within a sample; each is a key of the `data` section."""

    token: int
    """Id that ends a document, and belongs to it."""
    mask_eod: bool = False
    mask_documents: bool = False
    reset_positions: bool = False

    def context(self, tokens: torch.Tensor) -> Context:
        """Documents and positions of tokens [b, s], where they are asked for."""
        numbers = document_numbers(tokens, self.token)
        documents = Documents(numbers) if self.mask_documents else None
        return Context(documents, restarted_positions(numbers) if self.reset_positions else None)


class Batches:
    """One data-parallel rank's micro-batches; the step that begins at any sample is found at once.

    A step consumes micro_batch_size × grad_accum × dp consecutive items, or with fewer micro-batches fewer; its
    micro-batch k is the next micro_batch_size × dp of them, dealt to the ranks in contiguous slices.
    """

    def __init__(
        self,
        dataset: Dataset,
        micro_batch_size: int,
        grad_accum: int,
        dp: int,
        dp_index: int,
        ends: Ends | None = None,
        dropout_seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        """ends: None where documents follow each other unmarked. dropout_seed: None where there is no dropout.
        drop_last: whether the first sample comes again after the last whole micro-batch of this layout, as from
        GPT-NeoX's loader, and not after the last sample.
        """
        assert 0 <= dp_index < dp
        self._ends = ends
        self._dropout_seed = dropout_seed
        self._dataset = dataset
        self._micro_batch_size = micro_batch_size
        self._grad_accum = grad_accum
        self._dp = dp
        self._dp_index = dp_index
        self._lap = len(dataset) // self.micro_step_size * self.micro_step_size if drop_last else 0

    @property
    def micro_step_size(self) -> int:
        """Samples of one micro-batch on all ranks together."""
        return self._micro_batch_size * self._dp

    @property
    def global_batch_size(self) -> int:
        """Samples that a step of grad_accum micro-batches consumes on all ranks together."""
        return self.micro_step_size * self._grad_accum

    def step(
        self, samples_consumed: int, num_micro_batches: int | None = None, length: int | None = None
    ) -> list[MicroBatch]:
        """The step after `samples_consumed` samples: micro-batches of [mbs, length] tokens.

        num_micro_batches: None: grad_accum. length: how many of each sample's first tokens; None: all.
        """
        size = self._micro_batch_size
        first = samples_consumed + self._dp_index * size
        count = self._grad_accum if num_micro_batches is None else num_micro_batches
        return [self._micro_batch(first + k * size * self._dp, length) for k in range(count)]

    def _micro_batch(self, first: int, length: int | None) -> MicroBatch:
        items = range(first, first + self._micro_batch_size)
        rows = [self._dataset[item % self._lap if self._lap else item] for item in items]
        text, labels = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        tokens, labels = text[:, :-1][:, :length].contiguous(), labels[:, 1:][:, :length].contiguous()
        context = Context() if self._ends is None else self._ends.context(tokens)
        if self._ends is not None and self._ends.mask_eod:
            labels[tokens == self._ends.token] = IGNORED
        if self._dropout_seed is not None:
            context = dataclasses.replace(context, keys=sample_keys(self._dropout_seed, items))
        return MicroBatch(tokens, labels, context)
