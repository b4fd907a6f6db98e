"""Logits and every gradient equal those of transformers' models with the same weights, and cached logits too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.t5.modeling_t5 import T5Attention

from neox.model.cache import KVCache
from neox.model.gpt import GPT
from neox.model.relative import buckets
from tests.model.families import FAMILIES, LENGTH, VOCAB, Family

EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def both(family: Family) -> tuple[nn.Module, GPT]:
    theirs = family.build()
    ours = GPT(family.ours, VOCAB)
    weights = family.weights(dict(theirs.named_parameters()))
    missing = dict(ours.named_parameters()).keys() ^ weights.keys()
    assert not missing
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(weights[name])
    return theirs, ours


@EVERY
def test_logits_and_every_gradient_are_theirs(family: Family) -> None:
    theirs, ours = both(family)
    tokens = torch.randint(1, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    want, got = theirs(tokens).logits, ours(tokens)
    assert float(want.std()) > 0.3
    assert float((got - want).abs().max()) <= 1e-5 * max(1.0, float(want.abs().max()))
    probe = torch.randn(want.shape, generator=torch.Generator().manual_seed(2)) / want.numel() ** 0.5
    (want * probe).sum().backward()
    (got * probe).sum().backward()
    gradients = family.gradients({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        difference = float((parameter.grad - gradients[name]).abs().max())
        assert difference <= 1e-5 * max(1.0, float(gradients[name].abs().max())), name


@EVERY
def test_a_cache_changes_no_logit(family: Family) -> None:
    theirs, ours = both(family)
    tokens = torch.randint(1, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    cache = KVCache(family.ours.num_layers, LENGTH)
    with torch.no_grad():
        parts = [ours(part, cache=cache) for part in tokens.split([9, 1, 1, 4, LENGTH - 15], dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), theirs(tokens).logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (2, 4)])
def test_buckets_are_t5s(num_buckets: int, max_distance: int) -> None:
    distance = torch.arange(-5, 300)
    want = T5Attention._relative_position_bucket(
        -distance, bidirectional=False, num_buckets=num_buckets, max_distance=max_distance
    )
    assert torch.equal(buckets(distance, num_buckets, max_distance), want)
