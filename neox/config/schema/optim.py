"""The `optim` section: optimizer and learning-rate curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate curve."""

    name: Literal["adamw"] = "adamw"
    """AdamW with decoupled weight decay; norms and biases are not decayed."""
    lr: float = 6e-4
    """Peak learning rate."""
    min_lr: float = 6e-5
    """Learning rate at the end of the decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest global L2 norm of the gradients; 0 does not clip."""
    schedule: Literal["cosine", "linear", "exponential", "constant", "wsd", "infinite"] = "cosine"
    """Shape of the curve after warm-up (`neox/train/schedule.py` has the formulas)."""
    warmup: float = 0.01
    """Share of decay_steps over which the rate rises linearly from 0 to lr."""
    decay_steps: int | None = None
    """Step at which min_lr is reached. None: train.steps."""
    anneal: float = 0.2
    """wsd and infinite: share of decay_steps, the last, over which the rate falls to min_lr."""
    cooldown: float = 0.3
    """infinite: share of decay_steps, after the warm-up, over which the rate falls from lr to constant_lr."""
    constant_lr: float | None = None
    """infinite: the rate between cooldown and annealing, required there."""
