"""Every implementation of every operation, on every case: outputs and gradients, in each dtype.

An implementation's error may be twice the reference's own error in that dtype, both measured against the reference in
fp64 (the rule of flash-attention's tests), plus a few roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import (
    attention,
    bias_gelu,
    dropout,
    layer_norm,
    linear,
    linear_cross_entropy,
    rms_norm,
    rotary,
    swiglu,
)
from kernels.cases import CASES, DTYPES, Case
from kernels.dispatch import IMPLEMENTATIONS, available, find, forced

PUBLIC: dict[str, Callable[..., Tensor]] = {
    "attention": attention.attention,
    "bias_gelu": bias_gelu.bias_gelu,
    "dropout": dropout.dropout,
    "layer_norm": layer_norm.layer_norm,
    "linear": linear.linear,
    "linear_cross_entropy": linear_cross_entropy.linear_cross_entropy,
    "rms_norm": rms_norm.rms_norm,
    "rotary": rotary.rotary,
    "swiglu": swiglu.swiglu,
}
RUNS = [(case, name) for case in CASES for name in available(case.operation)]


def run(function: Callable[..., Tensor], arguments: tuple[Any, ...]) -> list[Tensor]:
    """Output, then the gradient of each argument that requires one, of a loss that weighs every element differently."""
    out = function(*arguments)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    (out.double() * weights).sum().backward()
    return [out.detach(), *(a.grad for a in arguments if isinstance(a, Tensor) and a.requires_grad)]


def exact(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """The reference in fp64 on the inputs as `dtype` rounds them."""
    reference = find(case.operation, torch.device("cpu"), "reference")
    rounded = [
        a.detach().double().requires_grad_(a.requires_grad) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in case.arguments(dtype)
    ]
    return run(reference, tuple(rounded))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "name"), RUNS, ids=lambda v: v if isinstance(v, str) else f"{v.operation}: {v.label}")
def test_outputs_and_gradients(case: Case, name: str, dtype: torch.dtype) -> None:
    want = exact(case, dtype)
    plain = run(find(case.operation, torch.device("cpu"), "reference"), case.arguments(dtype))
    with forced(**{case.operation: name}):
        got = run(PUBLIC[case.operation], case.arguments(dtype))
    assert len(got) == len(want) == len(plain)
    for mine, theirs, truth in zip(got, plain, want, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == truth.shape
        rounding = 4 * torch.finfo(dtype).eps * float(truth.abs().max())
        allowed = 2 * float((theirs - truth).abs().max()) + rounding
        assert float((mine - truth).abs().max()) <= allowed


def test_every_operation_has_a_reference_and_cases() -> None:
    assert set(PUBLIC) == set(IMPLEMENTATIONS) == {case.operation for case in CASES}
    assert all("reference" in names for names in IMPLEMENTATIONS.values())


def test_references_against_pytorch() -> None:
    """The references are the specification, so they are held against independent code of another author."""
    torch.manual_seed(0)
    x, w, b = torch.randn(3, 20), torch.randn(20), torch.randn(20)
    close = torch.testing.assert_close
    with forced(**dict.fromkeys(IMPLEMENTATIONS, "reference")):
        close(layer_norm.layer_norm(x, w, b, 1e-5), torch.layer_norm(x, (20,), w, b, 1e-5))
        close(rms_norm.rms_norm(x, w, 1e-5), torch.rms_norm(x, (20,), w, 1e-5))
        close(bias_gelu.bias_gelu(x, b), torch.nn.functional.gelu(x + b, approximate="tanh"))
        close(linear.linear(x, w.diag(), b), x * w + b)
        close(swiglu.swiglu(x, x + 1), torch.nn.functional.silu(x) * (x + 1))
        head, counted = torch.randn(30, 20), torch.tensor([0, -100, 3])
        plain = torch.nn.functional.cross_entropy(x @ head.T, counted)
        close(linear_cross_entropy.linear_cross_entropy(x, head, counted), plain)


def test_attention_sees_no_later_token() -> None:
    q, k, v = (torch.randn(1, 1, 6, 4) for _ in range(3))
    for name in available("attention"):
        with forced(attention=name):
            before = attention.attention(q, k, v)
            changed = v.clone()
            changed[:, :, 4:] += 1
            after = attention.attention(q, k, changed)
        assert torch.equal(before[:, :, :4], after[:, :, :4])
        assert not torch.equal(before[:, :, 4:], after[:, :, 4:])


def test_rotary_is_a_rotation_by_relative_position() -> None:
    """Scores depend on the distance of query and key only, and lengths do not change."""
    positions = torch.arange(32.0)
    angles = torch.outer(positions, torch.tensor([1.0, 0.1]))
    q, k = torch.randn(4), torch.randn(4)
    turned_q = rotary.rotary(q.expand(1, 1, 32, 4), angles.cos(), angles.sin())[0, 0]
    turned_k = rotary.rotary(k.expand(1, 1, 32, 4), angles.cos(), angles.sin())[0, 0]
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[3:, 3:], scores[:-3, :-3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(32))
