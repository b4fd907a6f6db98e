"""The model against equations written out independently; its cache, names and initial weights."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from neox.config.derive import num_parameters, padded_vocab
from neox.config.schema import ModelConfig
from neox.model.cache import KVCache
from neox.model.gpt import GPT, build_piece, piece_names
from neox.model.init import init_tensor, init_weights
from tests.model import reference

BASE = ModelConfig(num_layers=3, hidden_size=48, num_heads=4, seq_length=24, vocab_size=120, rotary_pct=0.5)
VARIANTS = {
    "neox": BASE,
    "sequential": dataclasses.replace(BASE, parallel_residual=False),
    "tied": dataclasses.replace(BASE, tie_embeddings=True),
    "exact gelu, no bias": dataclasses.replace(BASE, activation="gelu", bias=False),
    "whole rotary": dataclasses.replace(BASE, rotary_pct=1.0, rotary_base=500.0),
    "llama": dataclasses.replace(
        BASE, norm="rmsnorm", activation="swiglu", bias=False, parallel_residual=False, intermediate_size=100
    ),
    "gated with biases": dataclasses.replace(BASE, activation="swiglu"),
    "grouped, window, caps": dataclasses.replace(
        BASE,
        num_kv_heads=2,
        layer_pattern=("window", "global"),
        sliding_window=5,
        attn_softcap=1.5,
        logit_softcap=2.0,
        sandwich_norm=True,
        parallel_residual=False,
    ),
    "one kv head, shared norm without bias": dataclasses.replace(
        BASE, num_kv_heads=1, head_dim=16, shared_norm=True, norm_bias=False, attn_bias=False, activation="relu"
    ),
    "qk norm": dataclasses.replace(BASE, qk_norm=True, num_kv_heads=2, bias=False, attn_bias=True),
    "sandwich in parallel": dataclasses.replace(BASE, sandwich_norm=True, norm="rmsnorm"),
    "alibi, scaled": dataclasses.replace(BASE, num_heads=6, positions="alibi", alibi_scale=0.7, num_kv_heads=3),
    "learned with offset": dataclasses.replace(BASE, positions="learned", position_offset=2, tie_embeddings=True),
    "sinusoidal": dataclasses.replace(BASE, positions="sinusoidal", activation="silu"),
    "t5": dataclasses.replace(BASE, positions="t5", t5_buckets=8, t5_max_distance=13, activation="mish"),
    "no positions, window everywhere": dataclasses.replace(
        BASE, positions="none", layer_pattern=("window",), sliding_window=3, activation="softsign"
    ),
    "linear rotary": dataclasses.replace(BASE, rotary_scaling="linear", rotary_factor=4.0, activation="reglu"),
    "ntk rotary": dataclasses.replace(BASE, rotary_scaling="ntk", rotary_factor=4.0, activation="geglu"),
    "scalenorm": dataclasses.replace(BASE, norm="scalenorm", activation="geglu_tanh"),
    "no weights in norms": dataclasses.replace(BASE, norm="non_parametric_layernorm", activation="bilinear"),
    "glu": dataclasses.replace(BASE, activation="glu"),
}
EVERY = pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS.keys())


def build(cfg: ModelConfig) -> GPT:
    """A model with every parameter random, so that biases and norms matter too."""
    model = GPT(cfg, padded_vocab(cfg))
    init_weights(model, cfg, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def tokens_of(cfg: ModelConfig, length: int) -> torch.Tensor:
    return torch.randint(padded_vocab(cfg), (2, length), generator=torch.Generator().manual_seed(1))


@EVERY
def test_logits_and_gradients_equal_the_equations(cfg: ModelConfig) -> None:
    model, tokens = build(cfg), tokens_of(cfg, 20)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    got, want = model(tokens), reference.logits(weights, cfg, tokens)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    for logits in (got, want):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    for name, parameter in model.named_parameters():
        wanted = weights[name].grad
        assert parameter.grad is not None and wanted is not None
        assert float((parameter.grad - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max())), name


@EVERY
@pytest.mark.parametrize("cuts", [(1, 2, 3, 24), (10, 11, 24), (5, 17, 24), (24,)])
def test_a_cache_changes_no_logit(cfg: ModelConfig, cuts: tuple[int, ...]) -> None:
    model, tokens = build(cfg), tokens_of(cfg, 24)
    cache = KVCache(cfg.num_layers, max_length=24)
    with torch.no_grad():
        parts = [model(tokens[:, a:b], cache=cache) for a, b in itertools.pairwise((0, *cuts))]
        whole = model(tokens)
    assert cache.length == 24
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-5)


def test_a_full_cache_raises() -> None:
    cache = KVCache(BASE.num_layers, max_length=4)
    with pytest.raises(ValueError, match="holds 4 tokens, not 5"):
        build(BASE)(tokens_of(BASE, 5), cache=cache)


@EVERY
def test_parameters_are_counted_and_named(cfg: ModelConfig) -> None:
    model = GPT(cfg, padded_vocab(cfg))
    assert sum(p.numel() for p in model.parameters()) == num_parameters(cfg)
    names = {
        f"{piece}.{name}"
        for piece in piece_names(cfg)
        for name, _ in build_piece(piece, cfg, padded_vocab(cfg)).named_parameters()
    }
    assert {name for name, _ in model.named_parameters()} == names - ({"head.weight"} if cfg.tie_embeddings else set())


@EVERY
def test_bf16_is_close_to_fp32(cfg: ModelConfig) -> None:
    model, tokens = build(cfg), tokens_of(cfg, 24)
    want = model(tokens)
    want.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    got = model.bfloat16()(tokens)
    got.sum().backward()
    assert got.dtype == torch.bfloat16
    assert float((got.float() - want).abs().max()) < 0.05 * float(want.abs().max())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.bfloat16
        difference, wanted = parameter.grad.float() - gradients[name], gradients[name]
        assert float(difference.norm()) < 0.1 * max(float(wanted.norm()), 1.0), name


@pytest.mark.parametrize(
    ("changes", "name", "std"),
    [
        ({}, "layers.1.attn.qkv.weight", math.sqrt(2 / (5 * 256))),
        ({}, "embed.weight", math.sqrt(2 / (5 * 256))),
        ({}, "head.weight", math.sqrt(2 / (5 * 256))),
        ({}, "layers.2.mlp.gate.weight", math.sqrt(2 / (5 * 256))),
        ({}, "layers.1.attn.out.weight", 2 / (8 * math.sqrt(256))),
        ({}, "layers.1.mlp.down.weight", 2 / (8 * math.sqrt(256))),
        ({"init": "normal", "init_std": 0.03}, "layers.1.mlp.up.weight", 0.03),
        ({"output_init": "scaled_normal"}, "layers.1.mlp.down.weight", 0.02 / 4),
        ({"output_init": "single_residual_scaled_normal"}, "layers.1.mlp.down.weight", 0.02 / math.sqrt(8)),
        ({"init": "xavier_normal"}, "layers.1.attn.qkv.weight", math.sqrt(2 / (256 + 512))),
        ({"init": "xavier_uniform"}, "layers.1.attn.qkv.weight", math.sqrt(2 / (256 + 512))),
        ({"init": "wang_init"}, "embed.weight", 2 / (8 * math.sqrt(256))),
    ],
)
def test_initial_spread(changes: dict[str, object], name: str, std: float) -> None:
    cfg = dataclasses.replace(ModelConfig(num_layers=8, hidden_size=256, num_heads=4), **changes)  # type: ignore[arg-type]
    tensor = init_tensor(name, (256, 512), cfg, seed=1)
    assert float(tensor.std()) == pytest.approx(std, rel=0.02)
    assert abs(float(tensor.mean())) < 4 * std / math.sqrt(tensor.numel())


@pytest.mark.parametrize(("rule", "gain"), [("orthogonal", 2.0), ("scaled_orthogonal", 2 / 8)])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_orthogonal_rows_or_columns(rule: str, gain: float, shape: tuple[int, int]) -> None:
    cfg = dataclasses.replace(ModelConfig(num_layers=8, hidden_size=16, num_heads=4), init=rule)  # type: ignore[arg-type]
    weight = init_tensor("layers.0.mlp.up.weight", shape, cfg, seed=1)
    weight = weight if shape[0] < shape[1] else weight.T
    assert torch.allclose(weight @ weight.T, gain * torch.eye(16), atol=1e-5)


def test_initial_norms_are_one_and_biases_zero() -> None:
    model = GPT(BASE, padded_vocab(BASE))
    init_weights(model, BASE, seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert bool((parameter == 1).all())


def test_initial_weights_depend_on_name_and_seed_alone() -> None:
    first = init_tensor("layers.0.mlp.up.weight", (8, 4), BASE, seed=1)
    torch.randn(3)
    assert torch.equal(first, init_tensor("layers.0.mlp.up.weight", (8, 4), BASE, seed=1))
    assert not torch.equal(first, init_tensor("layers.0.mlp.up.weight", (8, 4), BASE, seed=2))
    assert not torch.equal(first, init_tensor("layers.1.mlp.up.weight", (8, 4), BASE, seed=1))
