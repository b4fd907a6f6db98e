"""The chunked head: many chunks, the last one short, give what plain PyTorch gives at once."""

from __future__ import annotations

import pytest
import torch

from kernels.linear_cross_entropy import chunked, linear_cross_entropy

VOCAB, HIDDEN, ROWS = 37, 12, 23


@pytest.mark.parametrize("rows_per_chunk", [1, 5, 100])
@pytest.mark.parametrize("scale", [1.0, 512.0])
def test_chunks_give_pytorchs_loss_and_gradients(
    monkeypatch: pytest.MonkeyPatch, rows_per_chunk: int, scale: float
) -> None:
    """`scale` is what the engine multiplies the loss with: 1 / accumulation, or fp16's loss scale."""
    monkeypatch.setattr(chunked, "CHUNK_NUMEL", rows_per_chunk * VOCAB + 1)
    monkeypatch.setattr(chunked, "SLICE_NUMEL", 5 * VOCAB)
    torch.manual_seed(0)
    values = torch.randn(ROWS, HIDDEN), torch.randn(VOCAB, HIDDEN)
    labels = torch.randint(VOCAB, (ROWS,))
    labels[::4] = -100  # PyTorch's own mark of a position that does not count
    results = []
    for loss_of in (lambda x, w: linear_cross_entropy(x, w, labels), lambda x, w: plain(x, w, labels)):
        x, weight = (value.clone().requires_grad_() for value in values)
        loss = loss_of(x, weight)
        (loss * scale).backward()
        results.append((loss.detach(), x.grad, weight.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


def plain(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weight), labels)


def test_hopeless_logits_keep_a_finite_loss() -> None:
    """The label's probability underflows; its loss is the distance to the largest logit all the same."""
    x, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [500.0]])
    assert float(linear_cross_entropy(x, weight, torch.tensor([0]))) == 500.0


@pytest.mark.parametrize("num_rows", [4, 0])
def test_nothing_counted_is_no_loss_and_no_gradient(num_rows: int) -> None:
    x, weight = torch.randn(num_rows, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.full((num_rows,), -100))
    loss.backward()
    assert loss == 0 and x.grad is not None and not x.grad.any() and weight.grad is not None and not weight.grad.any()


def test_no_gradient_is_made_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "zeros_like", lambda *args, **kwargs: calls.append(args))
    with torch.no_grad():
        linear_cross_entropy(torch.randn(4, 3), torch.randn(5, 3, requires_grad=True), torch.arange(4))
    assert calls == []


@pytest.mark.parametrize(("num_rows", "max_rows"), [(23, 5), (24, 4), (24, 23), (2048, 3), (9, 100), (2, 1), (1, 1)])
def test_parts_are_all_there_and_the_first_is_longer(num_rows: int, max_rows: int) -> None:
    """So that the others find room in what it leaves."""
    parts = [range(num_rows)[part] for part in chunked.descending(num_rows, VOCAB, max_rows * VOCAB)]
    first, *others = map(len, parts)
    assert [row for part in parts for row in part] == list(range(num_rows))
    assert first <= max(2, max_rows) and all(0 < other < first for other in others)
