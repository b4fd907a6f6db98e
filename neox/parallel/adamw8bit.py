"""AdamW whose moments are kept in 8 bits a number, in blocks with one scale each.

Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, https://arxiv.org/abs/2110.02861. Between zero and
a block's largest magnitude its dynamic tree spaces the numbers so that small ones are as exact as large ones.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

BLOCK = 256
"""Numbers with one scale, as in bitsandbytes."""
CHUNK = 1 << 22
"""Numbers that are in fp32 at a time, whole blocks."""
NUM_EXPONENTS = 7
MOMENTS = ("exp_avg", "exp_avg_sq")
SIGNED = MOMENTS[:1]


class Quantized:
    """A one-dimensional fp32 tensor in about a quarter of its memory."""

    def __init__(self, numel: int, is_signed: bool, device: torch.device) -> None:
        """Zeros."""
        self._values = values(is_signed, device)
        self._borders = (self._values[1:] + self._values[:-1]) / 2
        zero = int(torch.searchsorted(self._values, 0.0))
        self._codes = torch.full((numel,), zero, dtype=torch.uint8, device=device)
        self._largest = torch.zeros(-(-numel // BLOCK), device=device)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self._codes.numel()

    def read(self, start: int, numel: int) -> Tensor:
        """A copy of `numel` elements from `start` on, fp32."""
        first, last = start // BLOCK, -(-(start + numel) // BLOCK)
        scales = self._largest[first:last].repeat_interleave(BLOCK)[start - first * BLOCK :][:numel]
        return self._values[self._codes[start : start + numel].int()].mul_(scales)

    def write(self, start: int, tensor: Tensor) -> None:
        """Rounds to the nearest: whole blocks from `start` on, the last of all may be a shorter one.

        What `read` gave is kept to the bit; a block of subnormal numbers alone becomes zeros.
        """
        first, padding = start // BLOCK, -tensor.numel() % BLOCK
        blocks = torch.nn.functional.pad(tensor, (0, padding)).view(-1, BLOCK)
        largest, tiny = blocks.abs().amax(1), torch.finfo(torch.float32).tiny
        self._largest[first : first + len(largest)] = torch.where(largest < tiny, 0, largest)
        shares = blocks / largest.clamp(min=tiny).unsqueeze(1)
        codes = torch.bucketize(shares.flatten()[: tensor.numel()], self._borders, out_int32=True)
        self._codes[start : start + tensor.numel()] = codes.to(torch.uint8)


@functools.cache
def values(is_signed: bool, device: torch.device) -> Tensor:
    """The 256 values in -1…1 or 0…1, ascending: per power of ten from 10⁻⁶ on, twice as many between a tenth and it.

    bitsandbytes' map, but for -1, which is there in place of the next larger value so that the largest magnitude of a
    block is exact whatever its sign.
    """
    found = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for i in range(NUM_EXPONENTS):
        borders = torch.linspace(0.1, 1, 2 ** (i if is_signed else i + 1) + 1, dtype=torch.float64)
        centers = 10.0 ** (i - NUM_EXPONENTS + 1) * (borders[1:] + borders[:-1]) / 2
        found += [centers, -centers] if is_signed else [centers]
    out = torch.cat(found).sort().values.float().to(device)
    if is_signed:
        out[0] = -1.0
    return out


class AdamW8bit(torch.optim.Optimizer):
    """Over flat tensors. The moments of groups whose `is_matrix` is false, norms and biases, are few and stay fp32."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for flat in group["params"]:
                state = self.state[flat]
                for start in range(0, flat.numel(), CHUNK):
                    part = slice(start, start + CHUNK)
                    self._step_part(group, state, flat[part], flat.grad[part], start)
                state["step"] += 1

    def _step_part(
        self, group: dict[str, Any], state: dict[str, Any], weight: Tensor, gradient: Tensor, start: int
    ) -> None:
        first, second = (read(state[kind], start, weight.numel()) for kind in MOMENTS)
        beta1, beta2 = group["betas"]
        adamw(
            *([weight], [gradient], [first], [second], [], [state["step"].clone()]),
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )
        for kind, moment in zip(MOMENTS, (first, second), strict=True):
            if isinstance(state[kind], Quantized):
                state[kind].write(start, moment)


def read(held: Tensor | Quantized, start: int, numel: int) -> Tensor:
    """A part of a state tensor as fp32, of a quantized one a copy."""
    return held.read(start, numel) if isinstance(held, Quantized) else held.detach()[start : start + numel]


@contextlib.contextmanager
def writable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While it lasts, quantized state is fp32 tensors that may be written to; then it is quantized anew."""
    found = [
        (state, kind, held)
        for state in optimizer.state.values()
        for kind, held in state.items()
        if isinstance(held, Quantized)
    ]
    for state, kind, held in found:
        state[kind] = held.read(0, held.numel)
    try:
        yield
    finally:
        for state, kind, held in found:
            held.write(0, state[kind])
            state[kind] = held
