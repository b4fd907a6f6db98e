"""The learning rate of each step."""

from __future__ import annotations

import math

from neox.config.schema import OptimConfig


def learning_rate(num_completed: int, cfg: OptimConfig) -> float:
    """The rate of the step after `num_completed` steps, with decay_steps resolved.

    With n = num_completed, W = warmup · decay_steps and D = decay_steps:

    - n ≤ W and W > 0: lr · max(1, n) / W, capped at lr: GPT-NeoX HEAD's warm-up, whose first two steps are equal;
    - W < n < D: with x = (n − W) / (D − W): linear lr − (lr − min_lr) · x; cosine
      min_lr + (lr − min_lr) · (1 + cos πx) / 2; constant lr;
    - n ≥ D: min_lr, but for constant lr.
    """
    assert cfg.decay_steps is not None
    warmup = cfg.warmup * cfg.decay_steps
    if num_completed <= warmup and warmup > 0:
        return min(cfg.lr, cfg.lr * max(1, num_completed) / warmup)
    if cfg.schedule == "constant":
        return cfg.lr
    if num_completed >= cfg.decay_steps:
        return cfg.min_lr
    x = (num_completed - warmup) / (cfg.decay_steps - warmup)
    if cfg.schedule == "linear":
        return cfg.lr - (cfg.lr - cfg.min_lr) * x
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * (1 + math.cos(math.pi * x)) / 2
