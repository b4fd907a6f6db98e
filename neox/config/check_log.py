"""Ranges of the `log` section's keys."""

from __future__ import annotations

from neox.config.errors import UserError
from neox.config.schema import LogConfig


def check_log(log: LogConfig) -> None:
    """Raises UserError, naming the key and what is allowed."""
    if log.rank_tflops is not None and not 0 < log.rank_tflops < float("inf"):
        raise UserError(f"log.rank_tflops = {log.rank_tflops}: 10¹² FLOP/s, above 0")
    steps = log.profile_steps
    if steps is not None and not 1 <= steps[0] <= steps[1]:
        raise UserError(f"log.profile_steps = {list(steps)}: first and last step, 1 ≤ first ≤ last")
    if log.memory_snapshot and steps is None:
        raise UserError("log.memory_snapshot = True: log.profile_steps says of which steps")
    for name in ("state_norms_interval", "gradient_norms_interval", "noise_scale_steps"):
        if getattr(log, name) < 0:
            raise UserError(f"log.{name} = {getattr(log, name)}: steps, at least 0")
    if log.noise_scale_steps == 1:
        raise UserError("log.noise_scale_steps = 1: batches of two sizes are compared: at least 2, or 0 for none")
