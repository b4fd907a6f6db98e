"""SwiGLU by PyTorch's own operators."""

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `kernels.swiglu.swiglu`."""
    return F.silu(gate) * up
