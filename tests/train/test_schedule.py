"""Learning-rate curves, each against a formula or an implementation that is not ours."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import get_wsd_schedule

from neox.config.check_train import check_schedule
from neox.config.errors import UserError
from neox.config.schema import OptimConfig
from neox.train.schedule import learning_rate


def neox_head(n, lr, min_lr, warmup_iter, end_iter, style):
    """GPT-NeoX HEAD's AnnealingLR (megatron/learning_rates.py), from its description."""
    if warmup_iter > 0 and n <= warmup_iter:
        return lr * max(1, n) / warmup_iter
    m, e = n - warmup_iter, end_iter - warmup_iter
    if style == "constant":
        return lr
    if style == "exponential":
        return max(lr * math.exp(-0.693 * m / e), min_lr)
    if style == "linear":
        return max(lr * (e - m) / e, min_lr) if min_lr == 0 else min_lr + (lr - min_lr) * (1 - m / e)
    return max(min_lr + (lr - min_lr) / 2.0 * (math.cos(math.pi * m / e) + 1), min_lr)


@pytest.mark.parametrize("style", ["cosine", "linear", "exponential", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.1, 0.13])
@pytest.mark.parametrize("min_lr", [0.0, 6e-5, 4e-4])
def test_schedule_is_gpt_neox_head(style, warmup, min_lr):
    cfg = OptimConfig(lr=6e-4, min_lr=min_lr, schedule=style, warmup=warmup, decay_steps=100)
    for n in range(250 if style == "exponential" else 101):
        expected = neox_head(n, 6e-4, min_lr, warmup * 100, 100, style)
        assert learning_rate(n, cfg) == pytest.approx(expected, rel=1e-12, abs=1e-18), n


@pytest.mark.parametrize(("warmup", "anneal", "min_lr"), [(10, 20, 0.1), (0, 100, 0.0), (30, 70, 0.25)])
def test_wsd_is_that_of_transformers(warmup, anneal, min_lr):
    cfg = OptimConfig(lr=1.0, min_lr=min_lr, schedule="wsd", warmup=warmup / 100, anneal=anneal / 100, decay_steps=100)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_wsd_schedule(
        optimizer, warmup, anneal, num_training_steps=100, min_lr_ratio=min_lr, decay_type="linear"
    )
    for n in range(130):
        if n > warmup:
            assert learning_rate(n, cfg) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-15), n
        optimizer.step()
        theirs.step()


def paper_infinite(t, n, t_cd, t_ann, t_end, eta_max, eta_const, eta_min):
    """The schedule of arXiv 2403.08763 in absolute steps: warm-up, cooldown, constant, annealing."""
    if t <= n:
        return eta_max * t / n
    if t <= t_cd:
        return eta_const + (eta_max - eta_const) / 2 * (1 + math.cos(math.pi * (t - n) / (t_cd - n)))
    if t <= t_ann:
        return eta_const
    return eta_const * (eta_min / eta_const) ** ((t - t_ann) / (t_end - t_ann))


def test_infinite_is_that_of_its_paper():
    cfg = OptimConfig(lr=1e-3, constant_lr=4e-4, min_lr=1e-5, schedule="infinite", warmup=0.1, cooldown=0.4, anneal=0.2)
    cfg = OptimConfig(**{**vars(cfg), "decay_steps": 200})
    for t in range(1, 201):
        expected = paper_infinite(t, 20, 100, 160, 200, 1e-3, 4e-4, 1e-5)
        assert learning_rate(t, cfg) == pytest.approx(expected, rel=1e-12), t
    assert learning_rate(500, cfg) == pytest.approx(1e-5, rel=1e-12), "it stays where it arrived"


def test_schedule_known_values():
    cfg = OptimConfig(lr=1.0, min_lr=0.1, schedule="cosine", warmup=0.1, decay_steps=100)
    known = {0: 0.1, 1: 0.1, 5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1, 5000: 0.1}
    assert {n: learning_rate(n, cfg) for n in known} == pytest.approx(known, rel=1e-12)
    tiny = OptimConfig(lr=1.0, min_lr=0.1, warmup=0.01, decay_steps=10)
    assert max(learning_rate(n, tiny) for n in range(11)) <= 1.0, "a warm-up shorter than one step stays below lr"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"warmup": 1.0}, "optim.warmup = 1.0"),
        ({"min_lr": 1.0}, "optim.min_lr = 1.0"),
        ({"schedule": "wsd", "anneal": 0.0}, "anneal above 0"),
        ({"schedule": "wsd", "warmup": 0.5, "anneal": 0.6}, "together at most 1: 0.5"),
        ({"schedule": "infinite", "cooldown": 0.8, "constant_lr": 1e-4}, "together at most 1"),
        ({"schedule": "infinite"}, "optim.constant_lr = None"),
        ({"schedule": "infinite", "constant_lr": 1e-4, "min_lr": 0.0}, "0 < min_lr"),
    ],
)
def test_phases_that_do_not_fit_are_refused(changes, key):
    with pytest.raises(UserError, match=key):
        check_schedule(OptimConfig(**changes))
    check_schedule(OptimConfig())
