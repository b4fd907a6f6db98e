"""Activation checkpointing: the same gradients, dropout included, from fewer kept tensors."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import nn

from neox.config.schema import ModelConfig
from neox.model.context import Context
from neox.model.dropout import sample_keys
from neox.model.gpt import build_piece
from neox.model.init import init_weights
from neox.parallel.recompute import Recompute, apply_recompute
from tests.parallel.training import DROPPED, NEOX


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
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = block(x, Context(keys=sample_keys(0, range(2))))
    size = sum(kept.values())  # before backward keeps what it makes again
    out.square().sum().backward()
    assert x.grad is not None
    return size, [x.grad, *(p.grad for p in block.parameters() if p.grad is not None)]


def block_of(cfg: ModelConfig) -> nn.Module:
    block = build_piece("layers.0", cfg, 128)
    init_weights(block, cfg, 0)
    return block


def test_gradients_are_the_same_and_less_is_kept() -> None:
    for cfg in (NEOX, DROPPED):
        runs = {recompute: kept_and_gradients(block_of(cfg), recompute) for recompute in get_args(Recompute)}
        sizes = [runs[recompute][0] for recompute in ("full", "selective", "none")]
        assert sizes[0] == 2 * 16 * NEOX.hidden_size and sizes[0] < sizes[1] < sizes[2]
        for _, gradients in runs.values():
            assert len(gradients) > 4
            assert all(torch.equal(a, b) for a, b in zip(gradients, runs["none"][1], strict=True))


def test_names_of_parameters_stay() -> None:
    block = block_of(NEOX)
    names = [name for name, _ in block.named_parameters()]
    apply_recompute(block, "full")
    assert [name for name, _ in block.named_parameters()] == names
