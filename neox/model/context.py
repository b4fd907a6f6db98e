"""What the model must know of a micro-batch beside its tokens: documents, positions, and keys for dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.attention.documents import Documents


@dataclass(frozen=True)
class Context:
    """Travels beside the activations through every block, whole on every rank whatever part of them it holds."""

    documents: Documents | None = None
    """Attention does not cross from one to the next. None: every sample is one document. Of the cached tokens too."""
    positions: Tensor | None = None
    """[b, s] int64: place of each token. None: 0…s - 1, or after the cache."""
    keys: Tensor | None = None
    """[b] int64: the random key of each sample, from which dropout makes its masks. None: there is no dropout."""

    def to(self, device: torch.device) -> Context:
        """The same on `device`."""
        return Context(
            None if self.documents is None else self.documents.to(device),
            None if self.positions is None else self.positions.to(device),
            None if self.keys is None else self.keys.to(device),
        )


PLAIN = Context()


class MicroBatch(NamedTuple):
    """What one forward pass reads."""

    tokens: Tensor
    """[b, s] int64."""
    labels: Tensor
    """[b, s] int64: the token to foretell; negative where it does not count in the loss."""
    context: Context = PLAIN


def document_numbers(tokens: Tensor, end: int) -> Tensor:
    """[b, s] int64: how many documents ended before each token; `end`, the token that ends one, belongs to it.

    As in GPT-NeoX's and Megatron-LM's get_ltor_masks_and_position_ids: what follows `end` does not see it.
    """
    is_end = (tokens == end).long()
    return is_end.cumsum(1) - is_end


def restarted_positions(numbers: Tensor) -> Tensor:
    """[b, s] int64: the place of each token within its document, from the documents' `numbers` [b, s]."""
    places = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    is_first = torch.ones_like(numbers, dtype=torch.bool)
    is_first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return places - places.masked_fill(~is_first, 0).cummax(1).values
