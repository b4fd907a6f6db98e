"""The kernels' benchmark runs every implementation there is here, forward and backward, and prints a line for each."""

from __future__ import annotations

import pytest
import torch

from kernels import benchmark
from kernels.dispatch import IMPLEMENTATIONS, available


def test_every_implementation_has_a_line_and_all_gradients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("SEQ", 8), ("HIDDEN", 32), ("VOCAB", 64), ("ROUNDS", 1)):
        monkeypatch.setattr(benchmark, name, value)
    asked: list[torch.Tensor] = []
    real = torch.autograd.grad

    def grad(out: torch.Tensor, wanted: list[torch.Tensor], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        asked.append(seed)
        found = real(out, wanted, seed)
        assert wanted and all(one.abs().sum() > 0 for one in found)
        return tuple(found)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    benchmark.main()
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert lines == [[operation, name] for operation in IMPLEMENTATIONS for name in available(operation, device)]
    assert all(seed.is_contiguous() for seed in asked), "as in training: strides of zero take another path"
