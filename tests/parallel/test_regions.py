"""What a tensor-parallel block sends and keeps, seen by one rank of a group whose collectives only record."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from neox.config.schema import ModelConfig
from neox.model.gpt import build_piece
from neox.parallel.groups import TensorGroup
from neox.parallel.plan import apply_plan
from neox.parallel.recompute import Recompute, apply_recompute
from tests.parallel.training import GEMMA, LLAMA, MULTI_QUERY, NEOX

TP, BATCH, SEQ = 2, 2, 8
ACTIVATION = BATCH * SEQ * NEOX.hidden_size // TP
"""Elements of a rank's stretch of an activation."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each collective sends an activation, or (`sums`) a parameter's gradient."""
    counts: Counter[str] = Counter()

    def all_reduce(x: Tensor, **_: Any) -> None:
        counts["all-reduce" if x.dim() == 3 else "sums"] += 1

    def all_gather(out: Tensor, x: Tensor, **_: Any) -> None:
        counts["all-gather"] += 1
        out.copy_(x.repeat(TP, 1, 1))

    def reduce_scatter(out: Tensor, x: Tensor, **_: Any) -> None:
        counts["reduce-scatter"] += 1
        out.copy_(x[: len(out)])

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "all_gather_single", all_gather)
    monkeypatch.setattr(dist, "reduce_scatter_single", reduce_scatter)
    return counts


def block_of(cfg: ModelConfig, is_sequence_sharded: bool, recompute: Recompute) -> tuple[nn.Module, Tensor]:
    """The first rank's part of a block, and what it is given."""
    whole = nn.Module()
    whole.add_module("layers", nn.ModuleDict({"0": build_piece("layers.0", cfg, 128)}))
    group: Any = object()
    apply_plan(whole, TensorGroup(TP, 0, group, is_sequence_sharded), lambda _, shape: torch.randn(shape))
    block = whole.get_submodule("layers.0")
    apply_recompute(block, recompute)
    length = SEQ // TP if is_sequence_sharded else SEQ
    return block, torch.randn(BATCH, length, cfg.hidden_size, requires_grad=True)


def run_block(
    cfg: ModelConfig, is_sequence_sharded: bool, sent: Counter[str], recompute: Recompute = "none"
) -> tuple[Counter[str], Counter[str], int]:
    """What a block's forward sends, what its backward sends, and the elements of activations kept in between."""
    block, x = block_of(cfg, is_sequence_sharded, recompute)
    parameters = {p.data_ptr() for p in block.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    sent.clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = block(x)
    forward, size = Counter(sent), sum(kept.values())
    sent.clear()
    y.sum().backward()
    return forward, Counter(sent), size


@pytest.mark.parametrize(
    ("cfg", "forward", "backward"),
    [(NEOX, 1, 2), (MULTI_QUERY, 1, 1), (LLAMA, 2, 2), (GEMMA, 2, 2)],
    ids=["two norms", "shared norm", "one after the other", "sandwich"],
)
def test_a_block_sums_as_often_as_gpt_neox(cfg: ModelConfig, forward: int, backward: int, sent: Counter[str]) -> None:
    """Parallel branches in one all-reduce; layers that read the same input, a gate and its up, in one of backward's."""
    there, back, _ = run_block(cfg, False, sent)
    assert (there, back["all-reduce"]) == ({"all-reduce": forward}, backward)


@pytest.mark.parametrize(
    ("cfg", "entries", "exits"),
    [(NEOX, 2, 1), (MULTI_QUERY, 1, 1), (LLAMA, 2, 2), (GEMMA, 2, 2)],
    ids=["two norms", "shared norm", "one after the other", "sandwich"],
)
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_sequence_parallelism_sends_what_megatron_sends(
    cfg: ModelConfig, entries: int, exits: int, recompute: Recompute, sent: Counter[str]
) -> None:
    """Backward gathers each region's input once more, for all layers that read it."""
    there, back, _ = run_block(cfg, True, sent, recompute)
    assert there == {"all-gather": entries, "reduce-scatter": exits}
    assert (back["all-gather"], back["reduce-scatter"], back["all-reduce"]) == (exits + entries, entries, 0)


@pytest.mark.parametrize("cfg", [NEOX, LLAMA, MULTI_QUERY], ids=["neox", "llama", "shared norm"])
def test_a_rank_keeps_its_stretch_alone(cfg: ModelConfig, sent: Counter[str]) -> None:
    """Of the block's input and of its norms' outputs; what is within the regions is dealt to the ranks either way."""
    _, _, whole = run_block(cfg, False, sent)
    _, _, stretch = run_block(cfg, True, sent)
    num_norms = 1 if cfg.shared_norm else 2
    num_inputs = 1 if cfg.parallel_residual else 2
    assert whole - stretch >= (num_norms + num_inputs) * ACTIVATION


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_recomputed_block_keeps_no_output_of_its_norms(recompute: Recompute, sent: Counter[str]) -> None:
    block, x = block_of(NEOX, True, recompute)
    normed: list[Any] = []
    block.get_submodule("attn_norm").register_forward_hook(lambda _module, _args, out: normed.append(weakref.ref(out)))
    y = block(x)
    assert (normed[0]() is None) == (recompute == "full")
    y.sum().backward()
    assert len(normed) == (2 if recompute == "full" else 1)
