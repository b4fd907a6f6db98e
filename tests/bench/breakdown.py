"""Where the time of a training step goes: PyTorch's profile of it, summed over a few parts that a person can name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch.profiler import ProfilerActivity, profile

ENCLOSING = {"LinearCrossEntropy": "head and loss", "Optimizer.step": "optimizer"}
"""Part of a name → the part of the step that everything within an event of such a name belongs to."""
OPERATORS = {
    "scaled_dot_product": "attention",
    "layer_norm": "norms",
    "gelu": "GELU",
    "embedding": "embedding",
    "index_select": "embedding",
    "norm": "clipping",
    "clamp": "clipping",
    "zero_": "zeroing",
    "fill_": "zeroing",
    "copy_": "copies",
    "cat": "copies",
}
"""Part of an operator's name → the part of the step it belongs to, the first that fits; else "other"."""
PRODUCTS = ("linear", "mm", "mul_mat")


def step_parts(step: Callable[[], object], ffn_size: int, num_steps: int = 3) -> dict[str, float]:
    """Part → its share of the CPU time of `num_steps` steps, largest first."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        for _ in range(num_steps):
            step()
    times: Counter[str] = Counter()
    for event in recorded.events() or ():
        times[_part(event, ffn_size)] += event.self_cpu_time_total
    total = sum(times.values())
    return {part: time / total for part, time in times.most_common()}


def _part(event: Any, ffn_size: int) -> str:
    for name in _names(event):
        for piece, part in ENCLOSING.items():
            if piece in name:
                return part
    if any(piece in event.name for piece in PRODUCTS):
        is_mlp = any(ffn_size in shape for shape in event.input_shapes)
        return "MLP's products" if is_mlp else "attention's projections"
    return next((part for piece, part in OPERATORS.items() if piece in event.name), "other")


def _names(event: Any) -> Iterator[str]:
    """Names of the event and of all that enclose it."""
    while event is not None:
        yield event.name
        event = event.cpu_parent
