"""Micro-batches' weights in the loss, and the contexts in the order of the forward passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.distributed as dist

from neox.model.context import PLAIN, Context, MicroBatch
from neox.parallel.feed import Feed, needs_context
from tests.parallel.training import DROPPED, NEOX, Case

LABELS = torch.tensor([[[1, 2, 3, 4]], [[1, -100, -100, -100]], [[-100, -100, -100, -100]]])


@pytest.fixture
def group() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_tokens_have_equal_weight_and_with_compat_micro_batches(group: Any) -> None:
    for compat, weights in (("none", [3 * 4 / 5, 3 * 1 / 5, 0.0]), ("neox_v1", [1.0] * 3), ("neox_v2", [1.0] * 3)):
        feed = Feed(dataclasses.replace(Case("").config(), compat=compat))
        loaded = list(feed.load(iter([MicroBatch(x, x) for x in LABELS]), 3, torch.device("cpu"), group))
        assert [float(weight) for _, (_, weight) in loaded] == pytest.approx(weights)
        assert all(torch.equal(targets, labels) for (_, (targets, _)), labels in zip(loaded, LABELS, strict=True))


def test_labels_that_all_count_change_nothing(group: Any) -> None:
    """Weights are exactly 1, so that losses are those of a plain mean to the bit; of nothing that counts, 0."""
    feed = Feed(Case("").config())
    for labels, weight in ((torch.ones(7, 1, 3), 1.0), (torch.full((7, 1, 3), -100), 0.0)):
        loaded = feed.load(iter([(x, x) for x in labels]), 7, torch.device("cpu"), group)
        assert [float(w) for _, (_, w) in loaded] == [weight] * 7


def test_each_forward_pass_has_its_own_context(group: Any) -> None:
    feed = Feed(Case("").config())
    contexts = [Context(positions=torch.tensor([number])) for number in range(3)]
    endless = iter([MicroBatch(LABELS[0], LABELS[0], context) for context in contexts])
    feed.load(endless, 2, torch.device("cpu"), group)
    seen = []
    for _ in range(2):
        feed.advance()
        assert feed.context.positions is not None
        seen.append(int(feed.context.positions))
    assert seen == [0, 1]
    assert list(feed.load(iter([]), 2, torch.device("cpu"), group)) == []
    feed.advance()
    assert feed.context is PLAIN
    assert next(endless).context is contexts[2], "no more is taken than asked for"


def test_a_stage_between_reads_data_only_where_a_context_is_needed() -> None:
    assert needs_context(Case("", model=DROPPED).config())
    config = Case("", model=NEOX).config()
    assert not needs_context(config)
    for section, key in (("model", "hidden_dropout"), ("model", "attention_dropout"), ("data", "mask_documents")):
        changed = dataclasses.replace(getattr(config, section), **{key: 0.5})
        assert needs_context(dataclasses.replace(config, **{section: changed}))
