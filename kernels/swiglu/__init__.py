"""The gated activation of SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

from torch import Tensor

from kernels.dispatch import find


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise.

    Args:
        gate, up: [..., width].
    """
    out: Tensor = find("swiglu", gate.device)(gate, up)
    return out
