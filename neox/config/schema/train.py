"""The `train` section: length, batch and precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and precision of a run."""

    steps: int = 1000
    """Optimizer steps (GPT-NeoX: train_iters)."""
    global_batch_size: int | None = None
    """Samples per optimizer step = micro_batch_size × grad_accum × dp; any two of the three sizes give the third."""
    micro_batch_size: int | None = None
    """Samples per rank and forward pass."""
    grad_accum: int | None = None
    """Micro-batches per step and rank; under a pipeline, the micro-batches in flight."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of weights and activations; masters, gradients' sum and moments stay fp32."""
    seed: int = 1234
    """Seed of the initial weights."""
    valid_interval: int = 100
    """Steps between validations; 0 never validates."""
    valid_batches: int = 10
    """Global batches per validation."""
