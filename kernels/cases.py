"""The inputs every implementation is tested on: awkward shapes, in each dtype, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.attention import Documents

DTYPES = (torch.float32, torch.bfloat16)
"""What each case is run in."""


@dataclass(frozen=True)
class Case:
    """One call of one operation."""

    operation: str
    label: str
    """What is awkward about it."""
    make: Callable[[torch.Generator], tuple[Any, ...]]
    """The arguments, floating tensors in fp32: converted to the dtype under test unless listed in `keep_fp32`."""
    keep_fp32: tuple[int, ...] = ()
    """Positions of arguments that are fp32 by contract and get no gradient."""

    def arguments(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Any, ...]:
        """The same values at every call; tensors that the operation differentiates require gradients."""
        values = self.make(torch.Generator().manual_seed(17))
        return tuple(self._place(index, value, dtype, device) for index, value in enumerate(values))

    def _place(self, index: int, value: Any, dtype: torch.dtype, device: str) -> Any:
        if isinstance(value, Documents):
            return value.to(torch.device(device))
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point() or index in self.keep_fp32:
            return value.to(device)
        return value.to(device, dtype).requires_grad_()


def _randn(*shapes: tuple[int, ...], scale: float = 1.0) -> Callable[[torch.Generator], tuple[Any, ...]]:
    return lambda generator: tuple(scale * torch.randn(shape, generator=generator) for shape in shapes)


def _attention(
    q: tuple[int, ...],
    kv: tuple[int, ...],
    window: int | None = None,
    softcap: float | None = None,
    bias: bool | str = False,
    scale: float = 1.0,
    starts: tuple[tuple[int, ...], ...] = (),
    dropout_p: float = 0.0,
) -> Callable[[torch.Generator], tuple[Any, ...]]:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        tensors = [scale * torch.randn(shape, generator=generator) for shape in (q, kv, kv)]
        shape = (q[1],) if bias == "slopes" else (q[1], q[2], kv[2])
        added = torch.randn(shape, generator=generator) if bias else None
        rows = torch.randint(1 << 62, q[:3], generator=generator) if dropout_p else None
        return (*tensors, added, window, softcap, _documents(kv[2], starts), dropout_p, rows)

    return make


def _documents(length: int, starts: tuple[tuple[int, ...], ...]) -> Documents | None:
    """For each sample, documents that begin at its first token and at those in `starts`; None where there are none."""
    if not starts:
        return None
    numbers = torch.zeros(len(starts), length, dtype=torch.int64)
    for row, places in zip(numbers, starts, strict=True):
        row[list(places)] = 1
    return Documents(numbers.cumsum(1))


def _norm(*shape: int, has_bias: bool, offset: float = 0.0) -> Callable[[torch.Generator], tuple[Any, ...]]:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        weights = [torch.randn(shape[-1:], generator=generator) for _ in range(1 + has_bias)]
        return (offset + torch.randn(shape, generator=generator), *weights, 1e-5)

    return make


def _rotary(shape: tuple[int, int, int, int], half: int) -> Callable[[torch.Generator], tuple[Any, ...]]:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        angles = 6.3 * torch.rand(shape[2], half, generator=generator)
        return torch.randn(shape, generator=generator), angles.cos(), angles.sin()

    return make


def _dropout(shape: tuple[int, ...], p: float) -> Callable[[torch.Generator], tuple[Any, ...]]:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        return torch.randn(shape, generator=generator), p, torch.randint(1 << 62, shape[:-1], generator=generator)

    return make


def _head(
    shape: tuple[int, ...], vocab: int, scale: float = 1.0, uncounted: int = 0, softcap: float | None = None
) -> Callable[..., tuple[Any, ...]]:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        x, weight = torch.randn(shape, generator=generator), scale * torch.randn(vocab, shape[-1], generator=generator)
        labels = torch.randint(vocab, shape[:-1], generator=generator)
        labels.flatten()[0], labels.flatten()[-1] = 0, vocab - 1
        labels.flatten()[1 : 1 + uncounted] = -100
        return x, weight, labels, softcap

    return make


CASES: tuple[Case, ...] = (
    Case("attention", "square", _attention((2, 3, 16, 8), (2, 3, 16, 8))),
    Case("attention", "odd length and head size", _attention((1, 2, 37, 5), (1, 2, 37, 5))),
    Case("attention", "one token", _attention((2, 1, 1, 8), (2, 1, 1, 8))),
    Case("attention", "one new token on a cache", _attention((2, 2, 1, 8), (2, 2, 19, 8))),
    Case("attention", "several new tokens on a cache", _attention((2, 2, 5, 8), (2, 2, 19, 8))),
    Case("attention", "large scores", _attention((1, 2, 16, 16), (1, 2, 16, 16), scale=6.0)),
    Case("attention", "groups of three queries", _attention((2, 6, 9, 8), (2, 2, 9, 8))),
    Case("attention", "one kv head on a cache", _attention((1, 5, 3, 8), (1, 1, 11, 8))),
    Case("attention", "a window", _attention((2, 2, 17, 8), (2, 2, 17, 8), window=4)),
    Case("attention", "a window of two, on a cache", _attention((1, 2, 3, 8), (1, 2, 9, 8), window=2)),
    Case("attention", "one new token and a window", _attention((1, 2, 1, 8), (1, 2, 9, 8), window=5)),
    Case("attention", "a window longer than the keys", _attention((1, 2, 7, 8), (1, 2, 7, 8), window=8)),
    Case("attention", "a bias", _attention((2, 4, 7, 8), (2, 2, 7, 8), bias=True)),
    Case("attention", "one new token with a bias", _attention((1, 4, 1, 8), (1, 2, 7, 8), bias=True)),
    Case("attention", "a cap", _attention((2, 4, 7, 8), (2, 4, 7, 8), softcap=1.5)),
    Case("attention", "everything", _attention((2, 6, 5, 8), (2, 3, 13, 8), window=6, softcap=2.0, bias=True)),
    Case("attention", "slopes on a cache", _attention((2, 4, 3, 8), (2, 2, 7, 8), bias="slopes"), keep_fp32=(3,)),
    Case(
        "attention",
        "slopes and documents",
        _attention((1, 2, 9, 8), (1, 1, 9, 8), bias="slopes", starts=((4,),)),
        keep_fp32=(3,),
    ),
    Case("attention", "documents", _attention((2, 4, 9, 8), (2, 2, 9, 8), starts=((1, 8), ()))),
    Case("attention", "documents, window, bias", _attention((1, 3, 9, 8), (1, 3, 9, 8), 3, bias=True, starts=((4,),))),
    Case("attention", "documents and a cap", _attention((1, 2, 9, 8), (1, 1, 9, 8), softcap=2.0, starts=((2, 3),))),
    Case("attention", "documents on a cache", _attention((2, 4, 1, 8), (2, 2, 9, 8), starts=((3,), ()))),
    Case(
        "attention",
        "documents, window, slopes, several new tokens",
        _attention((2, 2, 3, 8), (2, 1, 9, 8), 5, bias="slopes", starts=((3,), (4,))),
        keep_fp32=(3,),
    ),
    Case("attention", "dropout", _attention((2, 4, 7, 8), (2, 2, 7, 8), dropout_p=0.4, starts=((5,), (3,)))),
    Case("bias_gelu", "odd width", _randn((2, 5, 33), (33,))),
    Case("bias_gelu", "far from zero", _randn((64, 8), (8,), scale=6.0)),
    Case("bias_gelu", "no bias", lambda generator: (torch.randn(3, 17, generator=generator), None)),
    Case("dropout", "odd width", _dropout((2, 5, 33), 0.1)),
    Case("dropout", "one column, nearly all dropped", _dropout((64, 1), 0.9)),
    Case("layer_norm", "odd width", _norm(2, 5, 33, has_bias=True)),
    Case("layer_norm", "mean far from zero", _norm(4, 96, has_bias=True, offset=50.0)),
    Case(
        "layer_norm", "no bias", lambda g: (torch.randn(3, 17, generator=g), torch.randn(17, generator=g), None, 1e-5)
    ),
    Case("layer_norm", "one row", _norm(1, 8, has_bias=True)),
    Case("linear", "odd sizes", _randn((2, 7, 19), (33, 19), (33,))),
    Case("linear", "one row, more in than out", _randn((1, 65), (3, 65), (3,))),
    Case("linear", "no bias", lambda g: (torch.randn(5, 8, generator=g), torch.randn(6, 8, generator=g), None)),
    Case("linear_cross_entropy", "odd sizes", _head((2, 7, 19), 101)),
    Case("linear_cross_entropy", "large logits", _head((3, 5, 16), 64, scale=8.0)),
    Case("linear_cross_entropy", "positions that do not count", _head((2, 7, 16), 64, uncounted=5)),
    Case("linear_cross_entropy", "one position", _head((1, 16), 33)),
    Case("linear_cross_entropy", "soft cap", _head((2, 7, 16), 64, scale=2.0, softcap=5.0)),
    Case("rms_norm", "odd width", _norm(2, 5, 33, has_bias=False)),
    Case("rms_norm", "mean far from zero", _norm(4, 96, has_bias=False, offset=50.0)),
    Case("rotary", "a part of the head", _rotary((2, 3, 11, 16), 2), keep_fp32=(1, 2)),
    Case("rotary", "the whole head", _rotary((1, 2, 7, 6), 3), keep_fp32=(1, 2)),
    Case("swiglu", "odd width", _randn((2, 5, 33), (2, 5, 33))),
    Case("swiglu", "far from zero", _randn((64, 8), (64, 8), scale=6.0)),
)
"""All cases of all operations."""
