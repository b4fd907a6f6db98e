"""Activation checkpointing: what backward makes again instead of forward keeping it."""

from __future__ import annotations

import functools
from typing import Literal

from torch import nn
from torch.utils.checkpoint import checkpoint

Recompute = Literal["none", "selective", "full"]


def apply_recompute(block: nn.Module, recompute: Recompute) -> None:
    """Has a block of the residual stream, or its `attn` alone (selective), keep nothing but its input, in place.

    Modules and the names of their parameters stay as they are. Backward runs the same operations on the same context,
    so that dropout makes the same masks (Chen et al. 2016, arXiv 1604.06174; selective after Korthikanti et al. 2022,
    arXiv 2205.05198, section 5).
    """
    if recompute == "none":
        return
    chosen = block if recompute == "full" else block.get_submodule("attn")
    # An attribute of the instance, so that no wrapper comes between a parameter and its logical name.
    setattr(chosen, "forward", functools.partial(checkpoint, chosen.forward, use_reentrant=False))  # noqa: B010
