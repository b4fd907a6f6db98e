"""The learning rate of each step: a table of decay shapes behind one warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable

from neox.config.schema import OptimConfig

Shape = Callable[[float, OptimConfig], float]
"""(x, cfg) → rate, with x the share of the way from the end of the warm-up (0) to decay_steps (1)."""


def learning_rate(num_completed: int, cfg: OptimConfig) -> float:
    """The rate of the step after `num_completed` steps, with decay_steps resolved.

    With n = num_completed, W = warmup · decay_steps and D = decay_steps:

    - n ≤ W and W > 0: lr · max(1, n) / W, capped at lr: GPT-NeoX HEAD's warm-up, whose first two steps are equal;
    - n > W: SHAPES[cfg.schedule] at x = (n − W) / (D − W); at n ≥ D it stays where it arrived, but for exponential.
    """
    assert cfg.decay_steps is not None
    warmup = cfg.warmup * cfg.decay_steps
    if num_completed <= warmup and warmup > 0:
        return min(cfg.lr, cfg.lr * max(1, num_completed) / warmup)
    x = (num_completed - warmup) / (cfg.decay_steps - warmup)
    return SHAPES[cfg.schedule](x if cfg.schedule == "exponential" else min(x, 1.0), cfg)


def constant(x: float, cfg: OptimConfig) -> float:
    """lr."""
    return cfg.lr


def linear(x: float, cfg: OptimConfig) -> float:
    """A line from lr to min_lr."""
    return cfg.lr - (cfg.lr - cfg.min_lr) * x


def cosine(x: float, cfg: OptimConfig) -> float:
    """Half a cosine from lr to min_lr."""
    return _half_cosine(cfg.lr, cfg.min_lr, x)


def exponential(x: float, cfg: OptimConfig) -> float:
    """GPT-NeoX's lr · exp(−0.693 x), half of lr at x = 1 and falling on, never below min_lr."""
    return max(cfg.lr * math.exp(-0.693 * x), cfg.min_lr)


def wsd(x: float, cfg: OptimConfig) -> float:
    """Warm-up, stable, decay: lr, then over the last `anneal` of decay_steps a line to min_lr.

    Hu et al. 2024 (MiniCPM), https://arxiv.org/abs/2404.06395; Hägele et al. 2024, https://arxiv.org/abs/2405.18392.
    """
    return linear(_annealed(x, cfg), cfg)


def infinite(x: float, cfg: OptimConfig) -> float:
    """Half a cosine from lr to constant_lr over `cooldown`, constant_lr, then exponentially to min_lr over `anneal`.

    Any checkpoint of the constant part can be trained on with more data: Ibrahim et al. 2024,
    https://arxiv.org/abs/2403.08763, section 7.
    """
    assert cfg.constant_lr is not None
    cooled = x * (1 - cfg.warmup) / cfg.cooldown if cfg.cooldown else 1.0
    if cooled < 1:
        return _half_cosine(cfg.lr, cfg.constant_lr, cooled)
    ratio: float = (cfg.min_lr / cfg.constant_lr) ** _annealed(x, cfg)
    return cfg.constant_lr * ratio


SHAPES: dict[str, Shape] = {shape.__name__: shape for shape in (constant, linear, cosine, exponential, wsd, infinite)}
"""By the value of optim.schedule."""


def _half_cosine(begin: float, end: float, x: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * x)) / 2


def _annealed(x: float, cfg: OptimConfig) -> float:
    """How much of the last phase, `anneal` of decay_steps long, is over at x."""
    return max(0.0, 1 - (1 - x) * (1 - cfg.warmup) / cfg.anneal)
