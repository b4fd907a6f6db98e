"""What GPT-NeoX's files set and GPT-NeoX itself does not read, beside something else that they set."""

from __future__ import annotations

from typing import Any

from neox.config.legacy_convert import Converted, Flat
from neox.config.legacy_table_run import KEYS

READERS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "layernorm_epsilon": ("norm", ("layernorm", "non_parametric_layernorm")),
    "rms_norm_epsilon": ("norm", ("rmsnorm",)),
    "scalenorm_epsilon": ("norm", ("scalenorm",)),
    "opt_pos_emb_offset": ("pos_emb", ("learned",)),
    "rpe_num_buckets": ("pos_emb", ("rpe",)),
    "rpe_max_distance": ("pos_emb", ("rpe",)),
    "rotary_pct": ("pos_emb", ("rotary",)),
    "rotary_emb_base": ("pos_emb", ("rotary",)),
    "weighted_sampler_alpha": ("weight_by_num_documents", (True,)),
    "allow_chopped": ("pack_impl", ("pack_until_overflow", "unpacked")),
    "gradient_noise_scale_n_batches": ("log_gradient_noise_scale", (True,)),
}
"""Key → the one with which GPT-NeoX reads it, and that one's values."""


def unread(flat: Flat) -> Converted:
    """Notices of what is set and has no effect in GPT-NeoX either."""
    found = [
        (name, f"{by} {' or '.join(map(str, of))}") for name, (by, of) in READERS.items() if flat.get(by) not in of
    ]
    found += [("split", "data_path")] * flat.is_set("train_data_paths")
    found += [("finetune", "load")] * (not flat.is_set("load"))
    if not flat.get("profile") and not flat.get("memory_profiling"):
        found += [(name, "profile or memory_profiling") for name in ("profile_step_start", "profile_step_stop")]
    flat.notices += [f"{name}: read only with {by}" for name, by in found if flat.get(name) != KEYS[name].default]
    return {}
