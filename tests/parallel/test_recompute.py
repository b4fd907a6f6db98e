"""Activation checkpointing: the same gradients, dropout included, from fewer kept tensors."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import nn

from neox.model.gpt import build_piece
from neox.model.init import init_weights
from neox.parallel.recompute import Recompute, apply_recompute
from tests.parallel.training import NEOX


def kept_and_gradients(block: nn.Module, recompute: Recompute) -> tuple[int, list[torch.Tensor]]:
    """Elements of activations that forward kept for backward, and every gradient."""
    apply_recompute(block, recompute)
    parameters = {p.data_ptr() for p in block.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> Any:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    x = torch.randn(2, 16, NEOX.hidden_size, generator=torch.Generator().manual_seed(1), requires_grad=True)
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = block(x)
    size = sum(kept.values())  # before backward keeps what it makes again
    torch.manual_seed(4)  # what else draws numbers before backward must not matter
    out.square().sum().backward()
    assert x.grad is not None
    return size, [x.grad, *(p.grad for p in block.parameters() if p.grad is not None)]


class DropoutBlock(nn.Module):
    """A block with random numbers within attention and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Sequential(nn.Linear(NEOX.hidden_size, NEOX.hidden_size), nn.GELU(), nn.Dropout(0.5))
        self.mlp = nn.Sequential(nn.Linear(NEOX.hidden_size, NEOX.hidden_size), nn.GELU(), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.mlp(x + self.attn(x))
        return out


def block_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "dropout":
        return DropoutBlock()
    block = build_piece("layers.0", NEOX, 128)
    init_weights(block, NEOX, 0)
    return block


def test_gradients_are_the_same_and_less_is_kept() -> None:
    for kind in ("gpt", "dropout"):
        runs = {recompute: kept_and_gradients(block_of(kind), recompute) for recompute in get_args(Recompute)}
        sizes = [runs[recompute][0] for recompute in ("full", "selective", "none")]
        assert sizes[0] == 2 * 16 * NEOX.hidden_size and sizes[0] < sizes[1] < sizes[2]
        for _, gradients in runs.values():
            assert len(gradients) > 4
            assert all(torch.equal(a, b) for a, b in zip(gradients, runs["none"][1], strict=True))


def test_names_of_parameters_stay() -> None:
    block = block_of("gpt")
    names = [name for name, _ in block.named_parameters()]
    apply_recompute(block, "full")
    assert [name for name, _ in block.named_parameters()] == names
