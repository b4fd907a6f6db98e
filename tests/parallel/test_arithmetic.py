"""Rank arithmetic, the plan's table and the dealing of layers, without processes."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from neox.config.errors import UserError
from neox.config.optimizers import GROUP_NUMEL, largest_group
from neox.config.partition import counted_pieces
from neox.model.gpt import GPT
from neox.parallel.groups import TensorGroup
from neox.parallel.plan import apply_plan, local_shape, place, place_of, sharded_dim
from neox.parallel.settings import deepspeed_config
from neox.parallel.stages import deal_by_weight, deal_uniform
from neox.parallel.topology import Topology
from tests.parallel.training import LLAMA, NEOX, OPTIM, Case


@pytest.mark.parametrize(("dp", "tp", "pp"), [(1, 1, 1), (2, 3, 4), (3, 1, 2), (1, 4, 2)])
def test_ranks_are_ordered_as_deepspeed_orders_them(dp: int, tp: int, pp: int) -> None:
    topology = Topology(dp, tp, pp)
    theirs = PipeModelDataParallelTopology(num_pp=pp, num_mp=tp, num_dp=dp)
    for rank in range(topology.world_size):
        at = theirs.get_coord(rank)
        assert (topology.dp_index(rank), topology.tp_index(rank), topology.pp_index(rank)) == (
            at.data,
            at.model,
            at.pipe,
        )
        assert topology.rank(pp=at.pipe, dp=at.data, tp=at.model) == rank
    if tp > 1:
        assert topology.tp_groups() == theirs.get_axis_comm_lists("model")


def test_a_wrong_world_size_shows_the_equation() -> None:
    with pytest.raises(UserError, match=r"dp × tp × pp = 2 × 1 × 2 = 4 is not the number of ranks, 8"):
        Topology(2, 1, 2).check_world_size(8)
    with pytest.raises(UserError, match="tp = 0"):
        Topology(1, 0, 1)


@pytest.mark.parametrize("model", [NEOX, LLAMA])
@pytest.mark.parametrize("tp", [2, 4])
def test_shards_put_together_are_the_whole(model: object, tp: int) -> None:
    whole = GPT(model, 128)  # type: ignore[arg-type]
    for name, parameter in whole.named_parameters():
        with torch.no_grad():
            parameter.normal_()
        dim = sharded_dim(name)
        places = [place(name, tuple(parameter.shape), TensorGroup(tp, index)) for index in range(tp)]
        parts = [where.cut(parameter.data, local_shape(where, where.global_shape)) for where in places]
        assert torch.equal(parts[0] if dim is None else torch.cat(parts, dim), parameter)
        assert all(part.is_contiguous() for part in parts)
        assert [where.is_copy for where in places] == [dim is None and index > 0 for index in range(tp)]


def test_qkv_is_sharded_by_head() -> None:
    rows = torch.arange(3 * 32).view(4, 3, 8)  # [head][q, k, v][head_dim]
    where = place("layers.0.attn.qkv.bias", (96,), TensorGroup(2, 1))
    assert torch.equal(where.cut(rows.flatten(), (48,)).view(2, 3, 8), rows[2:])


def test_ranks_share_kv_heads_where_there_are_fewer() -> None:
    """Two heads on four ranks: each has its queries of one, the other rank that holds it the same key and value."""
    shape = dataclasses.replace(NEOX, num_heads=8, num_kv_heads=2)
    whole = {name: torch.randn(p.shape) for name, p in GPT(shape, 128).named_parameters()}
    for rank in range(4):
        model = GPT(shape, 128)
        apply_plan(model, TensorGroup(4, rank, copies=TensorGroup(2, rank % 2)), lambda name, _: whole[name])
        attn = model.layers[1].attn
        rows = whole["layers.1.attn.qkv.weight"].view(2, 6, 4, 32)[rank // 2]
        assert torch.equal(attn.q.weight, rows[:4].view(2, 8, 32)[rank % 2])
        assert torch.equal(attn.kv.weight, rows[4:].reshape(8, 32))
        assert attn.heads == range(2 * rank, 2 * rank + 2)
        assert place_of(attn.kv.bias).is_copy == (rank % 2 == 1) != attn.kv.bias.tensor_model_parallel
        assert not place_of(attn.q.weight).is_copy and attn.q.weight.tensor_model_parallel


def test_a_name_the_plan_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no entry for 'layers\.0\.attn\.gate\.weight'"):
        sharded_dim("layers.0.attn.gate.weight")


def test_only_shards_are_marked_for_the_norm() -> None:
    model = GPT(NEOX, 128)
    apply_plan(model, TensorGroup(2, 0), lambda _, shape: torch.zeros(shape))
    marked = {name for name, p in model.named_parameters() if p.tensor_model_parallel}  # type: ignore[attr-defined]
    assert marked == {name for name, _ in model.named_parameters() if sharded_dim(name) is not None}
    assert "layers.0.attn.out.bias" not in marked
    assert "head.weight" in marked


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
def test_the_heaviest_stage_is_as_light_as_possible(num_stages: int) -> None:
    weights = [9, 1, 4, 4, 1, 7]
    best = min(
        max(sum(weights[a:b]) for a, b in itertools.pairwise([0, *cuts, len(weights)]))
        for cuts in itertools.combinations(range(1, len(weights)), num_stages - 1)
    )
    got = deal_by_weight(weights, num_stages)
    assert len(got) == num_stages + 1 and all(a < b for a, b in itertools.pairwise(got))
    assert max(sum(weights[a:b]) for a, b in itertools.pairwise(got)) == best


@pytest.mark.parametrize(
    ("partition", "want"),
    [
        ("type:transformer|mlp", [1, 1, 1, 1]),
        ("type:^embedding", [1, 0, 0, 0]),
        ("type:pipe$", [2, 1, 1, 3]),
        ("type:Linear", [0, 0, 0, 1]),
    ],
)
def test_a_regular_expression_counts_the_pieces_named_so(partition: str, want: list[int]) -> None:
    assert counted_pieces(NEOX, partition) == want
    tied = dataclasses.replace(NEOX, tie_embeddings=True)
    assert counted_pieces(tied, "type:embed") == [1, 0, 0, 1]
    assert all(a < b for a, b in itertools.pairwise(deal_by_weight(want, 4)))


def test_uniform_stages_differ_by_one_at_most() -> None:
    assert deal_uniform(7, 3) == [0, 2, 4, 7]
    assert deal_uniform(4, 4) == [0, 1, 2, 3, 4]


def test_deepspeed_is_told_of_the_loss_scale() -> None:
    config = Case("", precision="fp16").config()
    scaler = {"fp16_initial_scale_power": 20, "fp16_scale_window": 7, "fp16_hysteresis": 3, "fp16_min_scale": 8.0}
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, **scaler))
    told = deepspeed_config(changed)["fp16"]
    assert told == {
        "enabled": True,
        "loss_scale": 0,
        "initial_scale_power": 20,
        "loss_scale_window": 7,
        "hysteresis": 3,
        "min_loss_scale": 8.0,
    }
    assert "fp16" not in deepspeed_config(Case("").config())


def test_one_replicas_groups_are_bounded_and_no_others() -> None:
    """Nor those of Muon, which knows two groups, and of Adafactor."""
    bounded = [Case(""), Case("", tp=2), Case("", optim=dataclasses.replace(OPTIM, name="lion"))]
    assert {largest_group(case.config()) for case in bounded} == {GROUP_NUMEL}
    whole = [Case("", optim=dataclasses.replace(OPTIM, name=name)) for name in ("muon", "adafactor")]
    free = [*whole, Case("", dp=2), Case("", pp=2), Case("", zero=2), Case("", precision="bf16")]
    assert {largest_group(case.config()) for case in free} == {math.inf}
