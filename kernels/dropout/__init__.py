"""Dropout whose mask is a function of keys: the same on any device, in any order, and when it is made again."""

import torch
from torch import Tensor

from kernels.dispatch import find

GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
"""SplitMix64's increment, the golden ratio, as a signed number: int64 arithmetic wraps, as the generator asks."""
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def mix(state: Tensor) -> Tensor:
    """SplitMix64's output for each state, int64 (Steele et al. 2014, https://doi.org/10.1145/2714064.2660195)."""
    for shift, factor in _ROUNDS:
        state = _shift_into(state, shift).mul_(factor)
    return _shift_into(state, 31)


def _shift_into(state: Tensor, shift: int) -> Tensor:
    """state ^ (state >> shift), shifting in zeros; one new tensor, for masks of attention are large."""
    return (state >> shift).bitwise_and_((1 << 64 - shift) - 1).bitwise_xor_(state)


def derive(keys: Tensor, numbers: range) -> Tensor:
    """keys [...], int64 → [..., n]: outputs number `numbers` of the SplitMix64 generator that starts from each key."""
    outputs = torch.arange(numbers.start + 1, numbers.stop + 1, device=keys.device)
    return mix(keys.unsqueeze(-1) + outputs * GAMMA)


def dropout(x: Tensor, p: float, rows: Tensor) -> Tensor:
    """Each element of `x` is 0 with probability `p`, else divided by 1 - p.

    Args:
        x: [..., n]. p: in [0, 1). rows: [...] int64, a key for each row of `x`: element i of a row is decided by half
            i mod 2 of SplitMix64's output i // 2 from the row's key.
    """
    out: Tensor = find("dropout", x.device)(x, p, rows)
    return out
