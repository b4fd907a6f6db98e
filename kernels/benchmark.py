"""`python -m kernels.benchmark`: time of every implementation at the shapes of a small model, forward and backward."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import IMPLEMENTATIONS, available, find

BATCH, SEQ, HIDDEN, HEADS, VOCAB = 2, 512, 256, 8, 8192
ROUNDS = 9


def inputs(device: str) -> dict[str, tuple[Any, ...]]:
    """Arguments of every operation."""
    hidden = [torch.randn(BATCH, SEQ, HIDDEN, device=device, requires_grad=True) for _ in range(2)]
    heads = [torch.randn(BATCH, HEADS, SEQ, HIDDEN // HEADS, device=device, requires_grad=True) for _ in range(3)]
    vectors = [torch.randn(HIDDEN, device=device, requires_grad=True) for _ in range(2)]
    angles = torch.rand(SEQ, HIDDEN // HEADS // 2, device=device)
    return {
        "attention": (*heads, None, None, None, None, 0.0, None),
        "bias_gelu": (hidden[0], vectors[0]),
        "dropout": (hidden[0], 0.1, torch.arange(BATCH * SEQ, device=device).view(BATCH, SEQ)),
        "layer_norm": (hidden[0], *vectors, 1e-5),
        "linear": (hidden[0], torch.randn(4 * HIDDEN, HIDDEN, device=device, requires_grad=True), None),
        "linear_cross_entropy": (
            hidden[0],
            torch.randn(VOCAB, HIDDEN, device=device, requires_grad=True),
            torch.randint(VOCAB, (BATCH, SEQ), device=device),
        ),
        "rms_norm": (hidden[0], vectors[0], 1e-5),
        "rotary": (heads[0], angles.cos(), angles.sin()),
        "swiglu": tuple(hidden),
    }


def time_ms(function: Callable[..., Any], arguments: tuple[Any, ...], grad: Tensor) -> float:
    """One call, forward and backward from `grad`, in milliseconds."""
    wanted = [value for value in arguments if isinstance(value, Tensor) and value.requires_grad]
    start = time.perf_counter()
    torch.autograd.grad(function(*arguments), wanted, grad)
    if grad.is_cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def compare(operation: str, arguments: tuple[Any, ...], device: str) -> dict[str, float]:
    """Name → best of ROUNDS calls in milliseconds; the implementations take turns, after a call that is not counted."""
    functions = {name: find(operation, torch.device(device), name) for name in available(operation, device)}
    out = functions["reference"](*arguments).detach()
    grad = torch.randn_like(out)  # dense, as in training: that of a sum is one number with strides of zero
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS + 1):
        for name, function in functions.items():
            times[name].append(time_ms(function, arguments, grad))
    return {name: min(values[1:]) for name, values in times.items()}


def main() -> None:
    """Prints one line per implementation, the first of each operation being what is used here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"forward and backward, fp32 on {device}, [{BATCH}, {SEQ}, {HIDDEN}], {threads} threads, load {load:.1f}")
    print(f"{'operation':<21}{'implementation':<16}{f'best of {ROUNDS}, ms':>16}{'reference ÷ it':>16}")
    arguments = inputs(device)
    for operation in IMPLEMENTATIONS:
        times = compare(operation, arguments[operation], device)
        for name, milliseconds in times.items():
            print(f"{operation:<21}{name:<16}{milliseconds:>16.3f}{times['reference'] / milliseconds:>16.2f}")


if __name__ == "__main__":
    main()
