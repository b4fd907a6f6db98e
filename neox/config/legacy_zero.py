"""GPT-NeoX's zero_optimization block, as our ZeRO stage and place of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neox.config.legacy_convert import Converted, Flat

SPEED = (
    *("allgather_partitions", "allgather_bucket_size", "reduce_scatter", "reduce_bucket_size"),
    *("overlap_comm", "contiguous_gradients", "round_robin_gradients", "load_from_fp32_weights"),
    *("sub_group_size", "cpu_offload_use_pin_memory", "stage3_prefetch_bucket_size", "stage3_max_live_parameters"),
    *("stage3_max_reuse_distance", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold"),
    *("stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"),
)
"""Keys of the block that change no result: sizes of buffers, overlap, and what DeepSpeed's own checkpoints hold."""

OFFLOAD = {
    "cpu_offload": "optimizer",
    "offload_optimizer": "optimizer",
    "cpu_offload_params": "parameters",
    "cpu_offload_param": "parameters",
    "offload_param": "parameters",
}
"""Key of the block → parallel.offload."""
OFFLOAD_SPEED = {
    "offload_optimizer": ("pin_memory", "buffer_count", "pipeline_read", "pipeline_write", "fast_init", "nvme_path"),
    "offload_param": ("pin_memory", "buffer_count", "buffer_size", "max_in_cpu", "nvme_path"),
}
"""Keys of their blocks that change no result."""


def zero(flat: Flat) -> Converted:
    """ZeRO: stages 0 and 1 compute the same, and stage 1 is what runs."""
    block = flat.block("zero_optimization")
    stage = block.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise flat.refusal("zero_optimization", "allowed are 0, 1, 2, 3", "stage", stage)
    if flat.get("zero_stage") not in (None, stage):
        raise flat.refusal("zero_stage", f"zero_optimization.stage is {stage}")
    flat.only("zero_optimization", block, ("stage", *SPEED, *OFFLOAD))
    if stage == 0:
        flat.notices.append("zero_optimization.stage 0 runs as stage 1: the same computation, in less memory")
    if set(block) & set(SPEED):
        flat.notices.append("zero_optimization: DeepSpeed's buckets are set here; only stage and offloading are taken")
    moved = {OFFLOAD[name] for name, value in block.items() if name in OFFLOAD and _is_on_host(flat, name, value)}
    if moved == {"parameters"}:
        flat.notices.append("zero_optimization: with the parameters, the optimizer goes to the host too")
    offload = "parameters" if "parameters" in moved else "optimizer" if moved else "none"
    return {"parallel.zero_stage": max(stage, 1), "parallel.offload": offload}


def _is_on_host(flat: Flat, name: str, value: Any) -> bool:
    if not isinstance(value, Mapping):
        if value not in (True, False, None):
            raise flat.refusal("zero_optimization", "true or false, or a block with a device", name, value)
        return bool(value)
    known = OFFLOAD_SPEED.get(name, ())
    flat.only("zero_optimization", value, ("device", *known), f"{name}.")
    if set(value) & set(known):
        flat.notices.append(f"zero_optimization.{name}: only device is taken; DeepSpeed's buffers are set here")
    device = value.get("device", "none")
    if device not in ("cpu", "none"):
        raise flat.refusal("zero_optimization", "allowed are cpu, none", f"{name}.device", device)
    return bool(device == "cpu")
