"""Packed documents: masks and positions against Megatron-LM's loop, and every document as if it were alone."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from kernels.attention import Documents
from neox.config.schema import ModelConfig
from neox.data.loader import Ends
from neox.model.context import Context, document_numbers, restarted_positions
from tests.model.test_gpt import BASE, build, tokens_of

END = 7
STARTS = (0, 1, 9, 16)  # of the documents in 20 tokens, the first of which is one token


def megatron_masks(tokens: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a query may see [b, s, s], and position ids, as get_ltor_masks_and_position_ids of Megatron-LM does it."""
    batch, length = tokens.shape
    sees = torch.ones(batch, length, length).tril()
    positions = torch.arange(length).repeat(batch, 1)
    for b in range(batch):
        previous = 0
        for i in (tokens[b] == end).nonzero().flatten().tolist():
            sees[b, i + 1 :, : i + 1] = 0
            positions[b, i + 1 :] -= i + 1 - previous
            previous = i + 1
    return sees.bool(), positions


def test_masks_and_positions_are_megatrons() -> None:
    tokens = torch.randint(10, (64, 12), generator=torch.Generator().manual_seed(0))
    tokens[0, :4], tokens[1, -1], tokens[2] = END, END, END
    sees, positions = megatron_masks(tokens, END)
    context = Ends(END, mask_documents=True, reset_positions=True).context(tokens)
    assert context.documents is not None and context.positions is not None
    assert torch.equal(context.documents.mask(12, None).squeeze(1), sees)
    assert torch.equal(context.documents.mask(12, 3).squeeze(1), sees & torch.ones(12, 12).triu(-2).bool())
    assert torch.equal(context.positions, positions)


def test_only_what_is_asked_for_is_made() -> None:
    tokens = torch.tensor([[1, END, 2]])
    assert Ends(END, mask_eod=True).context(tokens) == Context()
    assert Ends(END, mask_documents=True).context(tokens).positions is None
    assert Ends(END, reset_positions=True).context(tokens).documents is None


def test_bounds_are_where_documents_begin_in_the_samples_end_to_end() -> None:
    documents = Documents(document_numbers(torch.tensor([[1, END, 2, 3], [4, 5, 6, END], [END, END, 1, 1]]), END))
    assert documents.bounds.tolist() == [0, 2, 4, 8, 9, 10, 12] and documents.bounds.dtype == torch.int32
    assert documents.longest == 4


@pytest.mark.parametrize(
    "cfg",
    [
        BASE,
        dataclasses.replace(BASE, positions="learned", position_offset=2, num_kv_heads=1, parallel_residual=False),
        dataclasses.replace(BASE, positions="sinusoidal"),
        dataclasses.replace(BASE, positions="alibi", num_heads=6, layer_pattern=("window", "global"), sliding_window=5),
        dataclasses.replace(BASE, positions="t5", t5_buckets=8, t5_max_distance=13, attn_softcap=1.5),
    ],
    ids=lambda cfg: cfg.positions,
)
def test_a_packed_document_is_as_if_it_were_alone(cfg: ModelConfig) -> None:
    tokens = tokens_of(cfg, 20)
    numbers = torch.zeros(2, 20, dtype=torch.int64)
    numbers[:, list(STARTS[1:])] = 1
    numbers = numbers.cumsum(1)
    weights = torch.linspace(-1, 1, 20 * 128).view(1, 20, 128)  # of the logits in a loss that knows every one
    packed, alone = build(cfg), build(cfg)
    got = packed(tokens, Context(Documents(numbers), restarted_positions(numbers)))
    (got * weights).sum().backward()
    for first, last in itertools.pairwise((*STARTS, 20)):
        want = alone(tokens[:, first:last])
        torch.testing.assert_close(got[:, first:last], want, atol=1e-5, rtol=1e-5)
        (want * weights[:, first:last]).sum().backward()
    for (name, parameter), other in zip(packed.named_parameters(), alone.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        largest = float(other.grad.abs().max())
        assert float((parameter.grad - other.grad).abs().max()) <= 2e-5 * max(1.0, largest), name
