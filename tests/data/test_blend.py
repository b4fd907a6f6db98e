"""Blending against a plain loop written from GPT-NeoX's specification, and numbers that its own code printed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neox.data import blend


def plain_loop(weights, num_samples):
    """One sample after the other: the file whose share most exceeds what it gave; the first of several."""
    given, dealt = [0] * len(weights), []
    for sample in range(num_samples):
        errors = [weight * max(float(sample), 1.0) - float(count) for weight, count in zip(weights, given, strict=True)]
        choice = errors.index(max(errors))
        given[choice] += 1
        dealt.append(choice)
    return dealt


@settings(max_examples=60, deadline=None)
@given(
    weights=st.one_of(
        st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12),
        st.lists(st.integers(1, 4).map(float), min_size=1, max_size=12),  # many ties
    ),
    num_samples=st.integers(0, 1500),
)
def test_dealing_in_stretches_is_the_plain_loop(weights, num_samples):
    shares = np.array(weights) / np.sum(np.array(weights))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blend, "MIN_LANE", 8)  # many stretches, which the guesses do not all meet
        dealt = blend.deal(weights, num_samples)
    assert dealt.dtype == np.uint8 and dealt.tolist() == plain_loop(shares.tolist(), num_samples)


def test_wrong_guesses_are_dealt_again(monkeypatch):
    monkeypatch.setattr(blend, "MIN_LANE", 4)
    guess = blend._guess
    monkeypatch.setattr(blend, "_guess", lambda shares, starts: guess(shares, starts)[:, ::-1])
    weights = [0.1, 0.2, 0.7]
    assert blend.deal(weights, 300).tolist() == plain_loop((np.array(weights) / np.sum(weights)).tolist(), 300)


def test_dealing_golden():
    """Printed by GPT-NeoX's helpers.build_blending_indices (HEAD ea7aefd8)."""
    assert blend.deal([0.2, 0.5, 0.3], 16).tolist() == [1, 2, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 2, 1]


def test_counts_before_each_block(monkeypatch):
    monkeypatch.setattr(blend, "BLOCK", 5)
    index = np.array([0, 2, 2, 1, 0, 2, 2, 2, 0, 0, 1], np.uint8)
    assert blend.counts_before(index, 4).tolist() == [[0, 0, 0, 0], [2, 1, 2, 0], [4, 1, 5, 0]]


@pytest.mark.parametrize(("num_documents", "alpha"), [([7], 0.3), ([10, 30], 1.0), ([5, 50, 500], 0.3)])
def test_weights_by_documents(num_documents, alpha):
    """GPT-NeoX's are w ∝ p·(1 − q) with p ∝ n^alpha and q ∝ n; the documented ones are p."""
    n = np.array(num_documents, float)
    plain = n**alpha / np.sum(n**alpha)
    theirs = plain * (1 - n / np.sum(n))
    theirs = theirs / np.sum(theirs) if len(n) > 1 else plain
    assert blend.weights_by_documents(num_documents, alpha, "none") == pytest.approx(plain, rel=1e-12)
    assert blend.weights_by_documents(num_documents, alpha, "neox_v1") == pytest.approx(theirs, rel=1e-12)
    assert blend.weights_by_documents(num_documents, alpha, "neox_v2") == pytest.approx(theirs, rel=1e-12)


def test_pythia_asks_for_half_a_per_cent_more():
    assert blend.requested_of_each([1.0], 143000 * 1024) == [147_164_160]
