"""Activation checkpointing: the same gradients, dropout included, from fewer kept tensors."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
import torch
from torch import nn

from neox.config.derive import resolve
from neox.config.schema import Config, ModelConfig, TrainConfig
from neox.model.context import Context
from neox.model.dropout import sample_keys
from neox.model.gpt import build_piece
from neox.model.init import init_weights
from neox.parallel.recompute import Recompute, apply_recompute
from neox.planner.memory import memory_per_rank
from tests.parallel.training import DROPPED, NEOX


def kept_and_gradients(cfg: ModelConfig, recompute: Recompute) -> tuple[int, list[torch.Tensor]]:
    """Bytes of activations of two samples that forward kept for backward, and every gradient."""
    block = block_of(cfg)
    apply_recompute(block, recompute)
    parameters = {p.data_ptr() for p in block.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> Any:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    shape = (2, cfg.seq_length, cfg.hidden_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
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
        runs = {recompute: kept_and_gradients(cfg, recompute) for recompute in get_args(Recompute)}
        sizes = [runs[recompute][0] for recompute in ("full", "selective", "none")]
        assert sizes[0] == 4 * 2 * cfg.seq_length * cfg.hidden_size and sizes[0] < sizes[1] < sizes[2]
        for _, gradients in runs.values():
            assert len(gradients) > 4
            assert all(torch.equal(a, b) for a, b in zip(gradients, runs["none"][1], strict=True))


def test_names_of_parameters_stay() -> None:
    block = block_of(NEOX)
    names = [name for name, _ in block.named_parameters()]
    apply_recompute(block, "full")
    assert [name for name, _ in block.named_parameters()] == names


@pytest.mark.parametrize(
    "changes", [{"attention_dropout": 0.1}, {"hidden_dropout": 0.1}, {"attn_softcap": 5.0}], ids=str
)
def test_the_plan_counts_what_dropout_and_caps_keep(changes: dict[str, float]) -> None:
    plain = dataclasses.replace(NEOX, num_layers=1, seq_length=512)
    changed = dataclasses.replace(plain, **changes)  # type: ignore[arg-type]
    kept, planned = (
        kept_and_gradients(changed, "none")[0] - kept_and_gradients(plain, "none")[0],
        planned_bytes(changed) - planned_bytes(plain),
    )
    assert planned == pytest.approx(kept, rel=0.1)


def test_a_block_keeps_what_is_planned() -> None:
    """Of the projection whose queries and keys are turned, the values alone."""
    one = dataclasses.replace(NEOX, num_layers=1, seq_length=512)
    two = dataclasses.replace(one, num_layers=2)
    assert kept_and_gradients(one, "none")[0] == pytest.approx(planned_bytes(two) - planned_bytes(one), rel=0.05)


def planned_bytes(cfg: ModelConfig) -> float:
    config = Config(model=cfg, train=TrainConfig(micro_batch_size=2))
    return memory_per_rank(resolve(config, 1)).activations
