"""Step time, wall time and node-hours from the model's FLOPs and a machine's speed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from neox.config.flops import flops_per_token
from neox.config.schema import Config
from neox.config.warmup import phases


@dataclass(frozen=True)
class Cost:
    """What a whole run takes."""

    tokens: int
    flops: float
    step_s: float
    """Of the last step: after a warm-up of the batch or the length, all are alike."""
    wall_h: float
    node_hours: float


def cost(config: Config, world_size: int, ranks_per_node: int, rank_tflops: float, mfu: float) -> Cost:
    """Cost of a resolved configuration on ranks with a peak of `rank_tflops` (1e12 FLOP/s), used to the share `mfu`."""
    tokens, flops, step_s = 0, 0.0, 0.0
    for num_steps, samples, length in phases(config):
        model = dataclasses.replace(config.model, seq_length=length)
        flops_per_step = float(flops_per_token(model) * samples * length)
        tokens += num_steps * samples * length
        flops += num_steps * flops_per_step
        step_s = flops_per_step / (world_size * rank_tflops * 1e12 * mfu)
    wall_h = flops / (world_size * rank_tflops * 1e12 * mfu) / 3600
    return Cost(tokens, flops, step_s, wall_h, node_hours=wall_h * -(-world_size // ranks_per_node))
