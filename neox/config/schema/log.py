"""The `log` section: what is written down while training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LogConfig:
    """What is written down while training."""

    interval: int = 10
    """Steps between progress lines; metrics.jsonl has every step."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
