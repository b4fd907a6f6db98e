"""Rotary position embedding, half-split as GPT-NeoX has it (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

from torch import Tensor

from kernels.dispatch import find


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the first 2r dimensions of every head by the angle of its position; the rest passes through.

    Args:
        x: [batch, heads, seq, head_dim].
        cos, sin: [seq, r] fp32, or [batch, 1, seq, r] where samples differ; dimension i is paired with i + r.

    Returns:
        The shape and dtype of `x`; computed in fp32.
    """
    out: Tensor = find("rotary", x.device)(x, cos, sin)
    return out
