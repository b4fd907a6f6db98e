"""Step time, wall time and node-hours from the model's FLOPs and a machine's speed."""

from __future__ import annotations

from dataclasses import dataclass

from neox.config.flops import flops_per_token
from neox.config.schema import Config


@dataclass(frozen=True)
class Cost:
    """What a whole run takes."""

    tokens: int
    flops: float
    step_s: float
    wall_h: float
    node_hours: float


def cost(config: Config, world_size: int, ranks_per_node: int, rank_tflops: float, mfu: float) -> Cost:
    """Cost of a resolved configuration on ranks with a peak of `rank_tflops` (1e12 FLOP/s), used to the share `mfu`."""
    assert config.train.global_batch_size is not None
    tokens_per_step = config.train.global_batch_size * config.model.seq_length
    flops_per_step = flops_per_token(config.model) * tokens_per_step
    step_s = flops_per_step / (world_size * rank_tflops * 1e12 * mfu)
    wall_h = step_s * config.train.steps / 3600
    return Cost(
        tokens=tokens_per_step * config.train.steps,
        flops=flops_per_step * float(config.train.steps),
        step_s=step_s,
        wall_h=wall_h,
        node_hours=wall_h * -(-world_size // ranks_per_node),
    )
