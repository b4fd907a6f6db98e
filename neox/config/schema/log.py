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
    rank_tflops: float | None = None
    """Peak of one rank in 10¹² FLOP/s, for MFU and HFU (GPT-NeoX: peak_theoretical_tflops). None: what `jobs launch`
    says in NEOX_RANK_TFLOPS, from the site's node.rank_tflops at train.precision; without either there is no MFU."""
