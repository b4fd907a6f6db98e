"""The `optim` section: optimizer and learning-rate curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate curve."""

    name: Literal["adamw", "adam", "lion", "sgd", "adafactor", "muon", "adamw8bit", "onebitadam"] = "adamw"
    """adamw: decay decoupled from the gradient; adam: decay added to it; lion: the sign of a moment, decoupled decay;
    sgd: decay added to the gradient; adafactor: steps relative to the weights' size, lr of about 1e-2; muon: matrices
    of the blocks by momentum made orthogonal, the rest by adamw; adamw8bit: adamw with moments of 8 bits, those of
    norms and biases excepted; onebitadam: refused, with the reason."""
    lr: float = 6e-4
    """Peak learning rate."""
    min_lr: float = 6e-5
    """Learning rate at the end of the decay."""
    betas: tuple[float, float] | None = None
    """adamw, adamw8bit, adam, muon, lion: decay rates of the moments. None: 0.9 and 0.95; lion 0.9 and 0.99."""
    eps: float | None = None
    """adamw, adamw8bit, adam, muon: added to the denominator. None: 1e-8."""
    momentum: float | None = None
    """sgd: share of the sum of gradients before that is kept. None: 0. muon: decay rate of the mean. None: 0.95."""
    nesterov: bool | None = None
    """sgd, muon: take the step that the momentum would lead to next (Nesterov). None: false; muon true."""
    matrix_lr: float | None = None
    """muon: peak learning rate of the matrices, which follow the same curve. None: lr."""
    muon_scale: Literal["match_rms_adamw", "original"] | None = None
    """muon: a matrix's step times 0.2 · √max(rows, columns), as large as AdamW's at the same rate, or times
    √max(1, rows / columns). None: match_rms_adamw."""
    weight_decay: float = 0.1
    """Weight decay; norms and biases are not decayed."""
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
