"""The loss over the labels that count, against PyTorch's own, gradients included."""

import pytest
import torch
import torch.nn.functional as F

from neox.model.loss import lm_loss


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_labels_below_0_do_not_count(share):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 17, 29, generator=generator, requires_grad=True)
    labels = torch.randint(0, 29, (3, 17), generator=generator)
    labels[torch.rand(3, 17, generator=generator) < share] = -100
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    expected = expected if share < 1 else 0 * logits.sum()  # PyTorch's mean of nothing is NaN
    (gradient,) = torch.autograd.grad(expected, logits)
    loss = lm_loss(logits, labels)
    (found,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(loss, expected, rtol=1e-6) and torch.allclose(found, gradient, rtol=1e-5, atol=1e-8)
