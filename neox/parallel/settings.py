"""What DeepSpeed is told: its configuration, from ours."""

from __future__ import annotations

from typing import Any

from neox.config.schema import Config

BUCKET_NUMEL = 50_000_000
"""Elements per gradient bucket: 200 MB of fp32. DeepSpeed's default allocates ten times as much."""

SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Attributes of DeepSpeed's dynamic loss scaler that change from step to step."""


def deepspeed_config(cfg: Config) -> dict[str, Any]:
    """DeepSpeed's configuration for a resolved `cfg`: ZeRO-1, gradients summed and reduced in fp32."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": cfg.train.micro_batch_size,
        "gradient_accumulation_steps": cfg.train.grad_accum,
        "gradient_clipping": cfg.optim.grad_clip,
        "steps_per_print": None,
        "zero_optimization": {"stage": cfg.parallel.zero_stage, "reduce_bucket_size": BUCKET_NUMEL},
        "zero_allow_untested_optimizer": True,  # it only knows its own wrappers; PyTorch's AdamW is tested here
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
    if cfg.train.precision == "bf16":
        settings["bf16"] = {"enabled": True}
    if cfg.train.precision == "fp16":
        settings["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": cfg.train.fp16_initial_scale_power,
            "loss_scale_window": cfg.train.fp16_scale_window,
            "hysteresis": cfg.train.fp16_hysteresis,
            "min_loss_scale": cfg.train.fp16_min_scale,
        }
    return settings
