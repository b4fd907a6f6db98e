"""Activation checkpointing: what backward makes again instead of forward keeping it."""

from __future__ import annotations

import functools
from typing import Literal

from torch import nn
from torch.utils.checkpoint import checkpoint

Recompute = Literal["none", "selective", "full"]


def apply_recompute(block: nn.Module, recompute: Recompute) -> None:
    """Has a block of the residual stream, or what its `attn` does between its projections (selective), keep nothing but
    its input, in place.

    Modules and the names of their parameters stay as they are. Backward runs the same operations on the same context,
    so that dropout makes the same masks (Chen et al. 2016, arXiv 1604.06174; selective after Korthikanti et al. 2022,
    arXiv 2205.05198, section 5).
    """
    if recompute == "none":
        return
    chosen, method = (block, "forward") if recompute == "full" else (block.get_submodule("attn"), "attend")
    # An attribute of the instance, so that no wrapper comes between a parameter and its logical name.
    setattr(chosen, method, functools.partial(checkpoint, getattr(chosen, method), use_reentrant=False))
