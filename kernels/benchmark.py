"""`python -m kernels.benchmark`: time of every implementation at the shapes of a small model, forward and backward."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from kernels.dispatch import IMPLEMENTATIONS, available, find

BATCH, SEQ, HIDDEN, HEADS, VOCAB = 2, 512, 256, 8, 8192
ROUNDS = 7


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


def time_ms(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """Best of ROUNDS calls, forward and backward, in milliseconds."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function(*arguments).sum().backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 1000 * best


def main() -> None:
    """Prints one line per implementation."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"forward and backward, fp32 on {device}, [{BATCH}, {SEQ}, {HIDDEN}], best of {ROUNDS}")
    print(f"{'operation':<21}{'implementation':<16}{'ms':>9}{'reference ÷ it':>16}")
    arguments = inputs(device)
    for operation in IMPLEMENTATIONS:
        times = {
            name: time_ms(find(operation, torch.device(device), name), arguments[operation])
            for name in available(operation, device)
        }
        for name, milliseconds in times.items():
            print(f"{operation:<21}{name:<16}{milliseconds:>9.3f}{times['reference'] / milliseconds:>16.2f}")


if __name__ == "__main__":
    main()
