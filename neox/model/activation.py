"""Activation functions of the MLP, chosen by name: one table without a gate, one with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from kernels.swiglu import swiglu


def _gated(function: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    return function(gate) * up


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "mish": F.mish,
    "softsign": F.softsign,
}
"""model.activation → function of one projection; gelu_tanh has a kernel of its own, which takes the bias too."""

GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "swiglu": swiglu,
    "geglu": partial(_gated, F.gelu),
    "geglu_tanh": partial(_gated, partial(F.gelu, approximate="tanh")),
    "reglu": partial(_gated, F.relu),
    "glu": partial(_gated, F.sigmoid),
    "bilinear": partial(_gated, lambda gate: gate),
}
"""model.activation → function of the gate and the other projection (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
