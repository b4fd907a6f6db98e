"""Layout, batch triangle, sizes and costs, against published numbers and equations written out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from neox.config import derive
from neox.config.errors import UserError
from neox.config.flops import flops_per_token
from neox.config.load import load_config
from neox.config.schema import Config, ModelConfig, ParallelConfig, TrainConfig
from neox.planner.memory import Memory, memory_per_rank
from neox.planner.time import cost

MODEL = ["model.num_layers=4", "model.hidden_size=64", "model.num_heads=4", "model.vocab_size=1000"]

# Parameters that the Pythia paper's suite has on the Hub (total and without embeddings), padded vocabulary 50304.
PYTHIA = {
    (6, 512, 8): (70426624, 18915328),
    (12, 768, 12): (162322944, 85056000),
    (16, 2048, 8): (1011781632, 805736448),
}


def config(*overrides: str) -> Config:
    return load_config([], [*MODEL, *overrides])


@pytest.mark.parametrize(("shape", "published"), PYTHIA.items())
def test_parameters_equal_pythia(shape: tuple[int, int, int], published: tuple[int, int]) -> None:
    layers, hidden, heads = shape
    model = ModelConfig(num_layers=layers, hidden_size=hidden, num_heads=heads, vocab_size=50277)
    assert derive.padded_vocab(model) == 50304
    assert derive.num_parameters(model) == published[0]
    assert derive.num_parameters(model) - 2 * 50304 * hidden == published[1]


@pytest.mark.parametrize(
    ("sizes", "dp", "expected"),
    [
        ((8, 2, None), 2, (8, 2, 2)),
        ((8, None, 2), 2, (8, 2, 2)),
        ((None, 2, 3), 4, (24, 2, 3)),
        ((8, None, None), 2, (8, 4, 1)),
        ((None, None, None), 3, (3, 1, 1)),
        ((12, 2, 3), 2, (12, 2, 3)),
    ],
)
def test_batch_triangle(sizes: tuple[int | None, ...], dp: int, expected: tuple[int, int, int]) -> None:
    total, micro, accum = sizes
    batch = derive.resolve_batch(TrainConfig(global_batch_size=total, micro_batch_size=micro, grad_accum=accum), dp)
    assert (batch.global_batch_size, batch.micro_batch_size, batch.grad_accum) == expected


@pytest.mark.parametrize("sizes", [(7, 2, None), (8, None, 3), (8, 2, 3), (3, None, None), (2, 4, None)])
def test_batch_that_does_not_divide_shows_the_equation(sizes: tuple[int | None, ...]) -> None:
    total, micro, accum = sizes
    with pytest.raises(UserError, match="global_batch_size = micro_batch_size × grad_accum × dp does not hold"):
        derive.resolve_batch(TrainConfig(global_batch_size=total, micro_batch_size=micro, grad_accum=accum), 2)


def test_dp_is_what_remains_of_the_world() -> None:
    assert derive.resolve_parallel(ParallelConfig(tp=2, pp=2), 8).dp == 2
    assert derive.resolve_parallel(ParallelConfig(dp=4), 4).dp == 4
    for wrong in (ParallelConfig(tp=3), ParallelConfig(dp=2), ParallelConfig(tp=4, pp=4)):
        with pytest.raises(UserError, match="dp × tp × pp must be the number of ranks"):
            derive.resolve_parallel(wrong, 8)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["parallel.pp=2", "parallel.zero_stage=2"], "parallel.zero_stage = 2: needs parallel.pp = 1"),
        (["parallel.pp=2", "parallel.offload=optimizer"], "parallel.offload = optimizer: needs parallel.pp = 1"),
        (["parallel.zero_stage=2", "parallel.offload=parameters"], "needs parallel.zero_stage = 3, not 2"),
    ],
)
def test_what_zero_cannot_do_is_named(overrides: list[str], key: str) -> None:
    with pytest.raises(UserError, match=key):
        derive.resolve(config(*overrides), 4)
    without = [override for override in overrides if override != "parallel.pp=2"]
    derive.resolve(config(*without, "parallel.zero_stage=3"), 4)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.num_heads=5", "model.num_heads = 5 must divide model.hidden_size = 64; nearest that do: 1, 2, 4, 8"),
        ("parallel.tp=8", "parallel.tp = 8 must divide model.num_heads = 4"),
        ("model.num_kv_heads=3", "model.num_kv_heads = 3 must divide model.num_heads = 4"),
        (
            "parallel.tp=2 model.num_heads=6 model.num_kv_heads=3 model.hidden_size=48",
            "parallel.tp = 2 must divide the 3 key-value heads",
        ),
        (
            "parallel.tp=4 parallel.sequence_parallel=true model.seq_length=10",
            "parallel.tp = 4 must divide model.seq_len",
        ),
        ("parallel.partition=layers", "parallel.partition = layers: allowed are uniform, parameters and type:REGEX"),
        ("parallel.partition=type:block", "parallel.partition = type:block: is found in none of EmbeddingPipe, Para"),
        ("model.head_dim=0", "model.head_dim = 0: must be at least 1"),
        ("model.sliding_window=4", "model.sliding_window = 4: is the reach of the window blocks"),
        ("model.layer_pattern=[window]", "model.sliding_window = None: is the reach"),
        ("model.layer_pattern=[mamba]", "model.layer_pattern names mamba: allowed are global, window"),
        ("model.layer_pattern=[]", "model.layer_pattern names nothing"),
        ("model.layer_pattern=[global,global,global,global,global]", "names 5 blocks, model.num_layers = 4"),
        ("model.attn_softcap=0", "model.attn_softcap = 0.0: must be above 0"),
        ("model.position_offset=2", "model.position_offset = 2: is read with learned positions"),
        ("model.rotary_factor=0.5 model.rotary_scaling=yarn", "model.rotary_factor of at least 1, not rotary and 0.5"),
        ("model.rotary_scaling=ntk model.rotary_pct=0.125", "needs more than 2 rotated dimensions"),
        ("model.rotary_scaling=yarn model.rotary_ramp=[4,1]", "model.rotary_ramp = [4.0, 1.0]"),
        ("model.positions=t5 model.t5_max_distance=8", "model.t5_buckets = 32"),
        ("model.shared_norm=true model.parallel_residual=false", "model.shared_norm = true needs"),
        ("parallel.pp=8", "parallel.pp = 8 stages need as many layers; model.num_layers = 4"),
        ("model.rotary_pct=0.2", "model.rotary_pct = 0.2"),
        ("model.num_layers=0", "model.num_layers = 0: must be at least 1"),
        ("train.global_batch_size=0", "train.global_batch_size = 0"),
        ("optim.name=onebitadam", "optim.name = onebitadam: DeepSpeed has 1-bit Adam no more"),
        (
            "optim.name=lion optim.eps=1e-8",
            "optim.eps = 1e-08: optim.name = lion does not take it; it takes",
        ),
        (
            "optim.name=muon parallel.pp=4 model.bias=false model.norm=non_parametric_layernorm",
            "optim.name = muon: blocks without norms' weights and biases need parallel.pp of at most 2",
        ),
        ("optim.name=muon parallel.zero_stage=3", "optim.name = muon: puts whole tensors together"),
        ("optim.name=muon parallel.tp=4 model.num_kv_heads=2", "parallel.tp = 4 must divide the 2 heads"),
        ("optim.name=adafactor parallel.offload=optimizer", "parallel.offload = optimizer none; or take optim.name"),
        ("optim.name=muon optim.matrix_lr=0", "optim.matrix_lr = 0.0: must be above 0"),
        ("optim.name=adafactor optim.eps=1", "does not take it; it takes none of its own"),
        ("optim.momentum=0.9", "optim.momentum = 0.9: optim.name = adamw does not take it"),
        ("optim.name=sgd optim.nesterov=true", "optim.nesterov = true: needs optim.momentum above 0"),
        ("optim.betas=[0.9,1.0]", "optim.betas = [0.9, 1.0]: each must be"),
        ("optim.weight_decay=-0.1", "optim.weight_decay = -0.1: must be at least 0"),
        ("optim.warmup=1.0", "optim.warmup = 1.0"),
        ("optim.min_lr=1.0", "optim.min_lr = 1.0: must be in 0…optim.lr"),
        ("optim.min_lr=-1", "optim.min_lr = -1.0: must be in 0…optim.lr"),
        ("optim.lr=.nan", "optim.lr = nan: expected a finite number"),
        (f"optim.lr=1{'0' * 309}", ": expected a finite number"),
        ("model.norm_eps=-1", "model.norm_eps = -1.0: must be at least 0"),
        ("model.rotary_base=0", "model.rotary_base = 0.0: must be above 0"),
        ("model.rotary_scaling=yarn model.rotary_factor=2 model.rotary_trained_length=0", "tokens, at least 1"),
        ("train.seed=-1", "train.seed = -1: must be in 0…2³² - 1"),
        ("data.seed=4294967296", "data.seed = 4294967296: must be in 0…2³² - 1"),
        ("train.fp16_min_scale=0", "train.fp16_min_scale = 0.0: must be above 0"),
        ("train.fp16_initial_scale_power=-1", "train.fp16_initial_scale_power = -1: must be in 0…127"),
        ("checkpoint.steps=[5000]", "5000 is not in 0…train.steps = 1000"),
        ("log.profile_steps=[5,4]", "log.profile_steps = [5, 4]: first and last step, 1 ≤ first ≤ last"),
        ("log.memory_snapshot=true", "log.profile_steps says of which steps"),
        ("train.step_timeout_s=-1", "train.step_timeout_s = -1.0: seconds, at least 0"),
        ("log.rank_tflops=0", "log.rank_tflops = 0.0: 10¹² FLOP/s, above 0"),
        ("data.tokenizer=none.json", None),
    ],
)
def test_resolve_refuses_in_one_line(override: str, expected: str | None) -> None:
    if expected is None:
        assert derive.resolve(config(override), 8).model.vocab_size == 1000  # given, so the file is not read
        return
    with pytest.raises(UserError) as caught:
        derive.resolve(config(*override.split()), 8)
    assert expected in str(caught.value)


def test_resolve_leaves_nothing_open() -> None:
    resolved = derive.resolve(config("parallel.tp=2", "train.global_batch_size=8"), 8)
    assert (resolved.parallel.dp, resolved.train.micro_batch_size, resolved.train.grad_accum) == (4, 2, 1)
    assert resolved.optim.decay_steps == resolved.train.steps
    assert (resolved.optim.betas, resolved.optim.eps, resolved.optim.momentum) == ((0.9, 0.95), 1e-8, None)
    assert derive.resolve(resolved, 8) == resolved


def test_flops_are_twice_the_multiply_adds() -> None:
    model = ModelConfig(num_layers=2, hidden_size=8, num_heads=2, seq_length=16, vocab_size=128)
    matmuls = 2 * (4 * 8 * 8 + 2 * 8 * 32) + 128 * 8
    attention = 2 * 2 * 8 * (16 + 1) / 2  # layers × (scores, values) × hidden × mean causal length
    assert flops_per_token(model) == 3 * 2 * (matmuls + attention)


def test_flops_of_grouped_gated_and_windowed_layers() -> None:
    model = ModelConfig(
        num_layers=3,
        hidden_size=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        seq_length=16,
        vocab_size=128,
        activation="swiglu",
        intermediate_size=20,
        layer_pattern=("window", "global"),
        sliding_window=5,
    )
    matmuls = 3 * (8 * 6 * (4 + 2 + 2) + 4 * 6 * 8 + 3 * 8 * 20) + 128 * 8
    seen = [sum(min(i, reach) for i in range(1, 17)) for reach in (5, 16, 5)]
    assert flops_per_token(model) == 3 * 2 * (matmuls + 2 * 4 * 6 * sum(seen) / 16)


def test_flops_of_any_number_of_layers_are_known_at_once() -> None:
    def flops(num_layers: int) -> int:
        pattern: dict[str, Any] = {"layer_pattern": ("window", "global"), "sliding_window": 5}
        return flops_per_token(ModelConfig(num_layers, 8, 2, seq_length=16, vocab_size=128, **pattern))

    assert flops(2 * 10**12) - flops(2) == (10**12 - 1) * (flops(4) - flops(2))


def test_plan_shards_what_is_sharded() -> None:
    one = memory_per_rank(derive.resolve(config("train.micro_batch_size=1"), 1))
    two = memory_per_rank(derive.resolve(config("train.micro_batch_size=1"), 2))
    tensor = memory_per_rank(derive.resolve(config("train.micro_batch_size=1", "parallel.tp=2"), 2))
    parameters = derive.num_parameters(derive.resolve(config(), 1).model)
    assert one.weights == one.gradients == 4 * parameters
    assert (one.optimizer, two.optimizer) == (8 * parameters, 4 * parameters)
    lion = memory_per_rank(derive.resolve(config("train.micro_batch_size=1", "optim.name=lion"), 1))
    sgd = memory_per_rank(derive.resolve(config("train.micro_batch_size=1", "optim.name=sgd"), 1))
    assert (lion.optimizer, sgd.optimizer) == (4 * parameters, 0)
    eight = memory_per_rank(derive.resolve(config("train.micro_batch_size=1", "optim.name=adamw8bit"), 1))
    assert (eight.optimizer, eight.host) == (parameters * (2 + 2 * 4 / 256), one.host)
    noise = memory_per_rank(derive.resolve(config("train.micro_batch_size=1", "log.noise_scale_steps=5"), 1))
    assert noise.optimizer - one.optimizer == 4 * parameters
    muon = memory_per_rank(derive.resolve(config("train.micro_batch_size=1", "optim.name=muon"), 1))
    assert 4 * parameters < muon.optimizer < 8 * parameters
    assert two.weights == one.weights and tensor.weights == one.weights / 2
    resolved = derive.resolve(config("train.global_batch_size=8", "train.steps=100"), 8)
    plan = cost(resolved, world_size=8, ranks_per_node=4, rank_tflops=1.0, mfu=0.5)
    assert plan.tokens == 8 * 2048 * 100
    assert plan.wall_h == pytest.approx(plan.flops / (8 * 1e12 * 0.5) / 3600)
    assert plan.node_hours == pytest.approx(2 * plan.wall_h)


def test_gradients_are_stepped_on_from_a_copy_of_a_group() -> None:
    """Of one fp32 replica the groups are small, and find room where the activations were."""
    large = ["model.hidden_size=4096", "model.seq_length=16", "train.micro_batch_size=1"]
    one, two = (memory_per_rank(derive.resolve(config(*large), ranks)) for ranks in (1, 2))
    narrow = memory_per_rank(derive.resolve(config(*large, "train.precision=bf16"), 1))
    assert one.buffers == 0 < two.buffers
    assert narrow.buffers == pytest.approx(narrow.gradients - narrow.activations)


def test_memory_goes_where_zero_and_offloading_put_it() -> None:
    def memory(*overrides: str) -> Memory:
        return memory_per_rank(
            derive.resolve(config("train.micro_batch_size=1", "train.precision=bf16", *overrides), 4)
        )

    parameters = derive.num_parameters(derive.resolve(config(), 1).model)
    one, two, three = (memory(f"parallel.zero_stage={stage}") for stage in (1, 2, 3))
    assert (one.weights, one.gradients, one.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters / 4)
    assert (two.weights, two.gradients, two.optimizer) == (one.weights, one.gradients / 4, one.optimizer)
    assert (three.gradients, three.optimizer) == (two.gradients, two.optimizer)
    assert one.host == 3 * 4 * parameters / 4, "a copy of masters and moments, to be written as a checkpoint"
    large = ["model.num_layers=48", "model.hidden_size=4096", "model.num_heads=32", "parallel.zero_stage=3"]
    whole = 2 * derive.num_parameters(derive.resolve(config(*large), 1).model)
    assert whole / 4 < memory(*large).weights < whole / 3, "a quarter, the block in use and what is fetched ahead"
    offloaded = memory("parallel.zero_stage=2", "parallel.offload=optimizer")
    assert offloaded.optimizer == 0 and offloaded.host == one.host + 16 * parameters / 4
    gathered = memory(*large, "parallel.offload=parameters").weights
    assert gathered == pytest.approx(memory(*large).weights - whole / 4)


def test_checkpoint_steps() -> None:
    steps = derive.checkpoint_steps(config("train.steps=250", "checkpoint.interval=100", "checkpoint.steps=[0, 1, 2]"))
    assert steps == [0, 1, 2, 100, 200, 250]
