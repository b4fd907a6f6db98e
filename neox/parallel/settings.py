"""What DeepSpeed is told: its configuration, from ours."""

from __future__ import annotations

from typing import Any

from neox.config.derive import ffn_size
from neox.config.schema import Config
from neox.config.schema.parallel import BUCKET_NUMEL

SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Attributes of DeepSpeed's dynamic loss scaler that change from step to step."""


def deepspeed_config(cfg: Config) -> dict[str, Any]:
    """DeepSpeed's configuration for a resolved `cfg`: gradients are summed and reduced in fp32."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": cfg.train.micro_batch_size,
        "gradient_accumulation_steps": cfg.train.grad_accum,
        "gradient_clipping": cfg.optim.grad_clip,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # they wait for the GPU twice in every micro-batch
        "zero_optimization": zero_settings(cfg),
        "zero_allow_untested_optimizer": True,  # it only knows its own wrappers; PyTorch's AdamW is tested here
        "zero_force_ds_cpu_optimizer": False,  # its own is compiled at first use; PyTorch's fused one runs on hosts too
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
    if cfg.parallel.sequence_parallel:
        # Between stages DeepSpeed sends each tensor rank's share of what it takes to be equal on all of them.
        settings["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
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


def zero_settings(cfg: Config) -> dict[str, Any]:
    """The part about ZeRO: stage, sizes of buffers, and what is on the host."""
    parallel = cfg.parallel
    settings: dict[str, Any] = {
        "stage": parallel.zero_stage,
        "reduce_bucket_size": BUCKET_NUMEL,
        # Stage 1 keeps the gradients until the step ends, so a copy of them laid end to end would only be one more.
        "contiguous_gradients": parallel.zero_stage > 1 or parallel.offload != "none",
    }
    if parallel.zero_stage == 3:
        settings |= {
            # Norms and biases stay whole: cutting them would cost a collective each and save next to nothing.
            "stage3_param_persistence_threshold": max(3 * cfg.model.hidden_size, ffn_size(cfg.model)) // parallel.tp,
            "stage3_max_reuse_distance": 0,  # what forward gathered goes, and is gathered again for backward
        }
    if parallel.offload != "none":
        settings["offload_optimizer"] = {"device": "cpu"}
    if parallel.offload == "parameters":
        settings["offload_param"] = {"device": "cpu"}
    return settings
