"""GPT-NeoX's own learning-rate curves, to the bit; `neox.config.compat` refuses where they are not sane."""

from __future__ import annotations

import math

from neox.config.schema import OptimConfig


def neox_learning_rate(num_completed: int, cfg: OptimConfig, compat: str) -> float:
    """The rate after `num_completed` updates (megatron/learning_rates.py, AnnealingLR); compat: neox_v1 or neox_v2.

    With n = num_completed, D = decay_steps and W = warmup · D, the operations in GPT-NeoX's order, for they round:

    - neox_v1: n ≤ W: lr · n / W, so that the first step changes nothing; then with m = min(n, D − W) − W a decay of
      length D, which the run ends before, and never below min_lr: Pythia's cosine meets its min_lr at 0.8 · D;
    - neox_v2: n ≤ W: lr · max(1, n) / W; then with m = n − W a decay of length D − W, the cosine down to min_lr.
    """
    assert cfg.decay_steps is not None
    warmup = cfg.warmup * cfg.decay_steps
    is_v1 = compat == "neox_v1"
    if warmup > 0 and num_completed <= warmup:
        return float(cfg.lr) * (num_completed if is_v1 else max(1, num_completed)) / warmup
    since = (min(num_completed, cfg.decay_steps - warmup) if is_v1 else num_completed) - warmup
    length = cfg.decay_steps if is_v1 else cfg.decay_steps - warmup
    return max(_decayed(since, length, 0.0 if is_v1 else cfg.min_lr, cfg), cfg.min_lr)


def _decayed(since: float, length: float, low: float, cfg: OptimConfig) -> float:
    """The rate `since` steps into a decay of `length`; the cosine goes down to `low`."""
    if cfg.schedule == "linear":
        return cfg.lr * (length - since) / length
    if cfg.schedule == "cosine":
        return low + (cfg.lr - low) / 2.0 * (math.cos(math.pi * since / length) + 1)
    if cfg.schedule == "exponential":
        return cfg.lr * math.exp(-0.693 * since / length)
    assert cfg.schedule == "constant"
    return cfg.lr
