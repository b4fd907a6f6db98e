"""Dropout: a known generator, the right share of zeros, no likeness between masks, and none outside training."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from kernels.dropout import derive
from kernels.dropout.reference import keeps
from neox.model.context import Context
from neox.model.dropout import Dropout, sample_keys
from tests.model.test_gpt import BASE, build, tokens_of

P = 0.3
TOKENS, WIDTH = 64, 129


def drop(name: str, context: Context, x: torch.Tensor, stretch: int = 0) -> torch.Tensor:
    layer = Dropout(P)
    layer.name, layer.stretch = name, stretch
    out: torch.Tensor = layer(x, context)
    return out


def test_the_generator_is_splitmix64() -> None:
    """The first outputs from the state 1234567, which the generator's other implementations list."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [n % 2**64 for n in derive(torch.tensor(1234567), range(5)).tolist()] == known
    assert [n % 2**64 for n in derive(torch.tensor(1234567), range(2, 4)).tolist()] == known[2:4]


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.1, 0.5, 0.999, 1 - 1e-12])
def test_the_share_of_zeros_is_p(p: float) -> None:
    rows = derive(torch.tensor(1), range(1000))
    kept = keeps(rows, 501, p)
    assert abs(float(kept.double().mean()) - (1 - p)) <= 4 * math.sqrt(p * (1 - p) / kept.numel())


def test_what_is_kept_is_scaled_so_that_the_mean_stays() -> None:
    out = drop("layers.0.mlp_dropout", Context(keys=sample_keys(1, range(2))), torch.ones(2, TOKENS, WIDTH))
    assert {round(value, 5) for value in out.unique().tolist()} == {0.0, round(1 / (1 - P), 5)}


def test_masks_of_layers_samples_seeds_places_and_heads_are_not_alike() -> None:
    """Correlations of masks of n elements are normal with a deviation of 1 / sqrt(n) where they are independent."""
    ones = torch.ones(3, TOKENS, WIDTH)
    masks = [
        mask
        for seed, name in itertools.product(
            (0, 1, 1 << 40), ("embed_dropout", "layers.0.a", "layers.1.a", "layers.1.b")
        )
        for mask in (drop(name, Context(keys=sample_keys(seed, range(5, 8))), ones) > 0).float()
    ]
    attention = Dropout(P)
    rows = attention.probability_rows(Context(keys=sample_keys(0, range(5, 8))), range(4), TOKENS)
    assert rows is not None
    masks += [*keeps(rows, WIDTH, P).float().flatten(0, 1)]
    masks += [masks[0].roll(shift, dim) for shift, dim in itertools.product((1, 2, 3, 4), (0, 1))]  # neighbours
    flat = torch.stack(masks).flatten(1)
    correlation = torch.corrcoef(flat)[~torch.eye(len(flat), dtype=torch.bool)]
    assert float(correlation.abs().max()) * math.sqrt(flat.shape[1]) < 4.5
    assert 0.8 < float(correlation.std()) * math.sqrt(flat.shape[1]) < 1.2


def test_a_mask_is_the_same_whatever_part_of_it_is_made() -> None:
    """By samples (dp, micro-batches), stretches of the sequence (sequence parallelism) and heads (tp)."""
    x, keys = torch.randn(4, TOKENS, WIDTH), sample_keys(3, range(10, 14))
    whole = drop("layers.0.mlp_dropout", Context(keys=keys), x)
    for sample in range(4):
        alone = Context(keys=sample_keys(3, range(10 + sample, 11 + sample)))
        assert torch.equal(drop("layers.0.mlp_dropout", alone, x[sample : sample + 1]), whole[sample : sample + 1])
    for stretch, part in enumerate(x.split(TOKENS // 4, 1)):
        dropped = drop("layers.0.mlp_dropout", Context(keys=keys), part, stretch)
        assert torch.equal(dropped, whole.split(TOKENS // 4, 1)[stretch])
    attention = Dropout(P)
    every, some = (attention.probability_rows(Context(keys=keys), heads, 9) for heads in (range(6), range(2, 4)))
    assert every is not None and some is not None and torch.equal(every[:, 2:4], some)


@pytest.mark.parametrize("key", ["hidden_dropout", "attention_dropout"])
@pytest.mark.parametrize("is_parallel", [True, False])
def test_the_model_drops_in_training_alone(key: str, is_parallel: bool) -> None:
    plain = build(dataclasses.replace(BASE, parallel_residual=is_parallel))
    model = build(dataclasses.replace(plain.cfg, **{key: P}))  # type: ignore[arg-type]
    tokens, context = tokens_of(BASE, 20), Context(keys=sample_keys(0, range(2)))
    with torch.no_grad():
        want = plain(tokens)
        assert torch.equal(model.eval()(tokens), want)
        first, again = (model.train()(tokens, context) for _ in range(2))
        assert torch.equal(first, again) and not torch.allclose(first, want, atol=1e-2)
        names = [module.name for module in model.modules() if isinstance(module, Dropout)]
        assert len(set(names)) == len(names) == 1 + 3 * BASE.num_layers and "layers.2.attn.dropout" in names
        with pytest.raises(ValueError, match="dropout in training needs the samples' keys"):
            model(tokens)
