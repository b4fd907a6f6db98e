"""Rotary angles, in fp32 whatever the model's precision (GPT-NeoX's half precision tables lose long contexts)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(start: int, length: int, dims: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, each [length, dims / 2] fp32, of positions start … start + length - 1.

    Pair i of a head's `dims` rotated dimensions turns by position · base^(-2i / dims).
    """
    exponents = torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims
    positions = torch.arange(start, start + length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, base**-exponents)
    return angles.cos(), angles.sin()
