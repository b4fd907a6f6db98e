"""Ranges of the `log` section's keys."""

from __future__ import annotations

from neox.config.errors import UserError
from neox.config.schema import LogConfig


def check_log(log: LogConfig) -> None:
    """Raises UserError, naming the key and what is allowed."""
    if log.rank_tflops is not None and not 0 < log.rank_tflops < float("inf"):
        raise UserError(f"log.rank_tflops = {log.rank_tflops}: 10¹² FLOP/s, above 0")
