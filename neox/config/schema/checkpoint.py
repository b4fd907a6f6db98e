"""The `checkpoint` section: when to save, what to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what to keep."""

    interval: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    steps: tuple[int, ...] = ()
    """Further steps to save, kept for ever (GPT-NeoX: extra_save_iters)."""
    keep_last: int | None = None
    """How many of the interval's checkpoints to keep, the newest. None keeps all."""
    keep_every: int | None = None
    """With keep_last: checkpoints of steps that are a multiple of this are kept for ever too."""
    between: Literal["auto", "off"] = "auto"
    """Saves between these, each of which makes way for the next: auto, where the launcher knows how often the job's
    nodes fail (NEOX_MTBF_H, from the site's node_mtbf_h), at Daly's optimum for the measured time of a save;
    not where train.on_nonfinite or on_spike is rewind, which would go back to wherever the clock had one made."""
    init_from: str | None = None
    """Checkpoint, or run or imported model (`neox convert`), whose weights a new run starts from; optimizer, schedule
    and data begin anew (GPT-NeoX: load with finetune). None: initialised weights."""
    mirror: str | None = None
    """s3://BUCKET/PREFIX: every checkpoint is copied to PREFIX/<name of the run directory>/ behind training, and goes
    from there by the rules above; a run directory that has no checkpoint, or older ones, goes on from there (GPT-NeoX:
    s3_path). Of the saves in between only one that a run ends with is copied. Credentials and endpoint: AWS_* in the
    environment, or ~/.aws. None: no copy."""
    mirror_part_bytes: int = 104_857_600
    """Bytes of the parts that a larger file is sent in, 5 MiB at least (GPT-NeoX: s3_chunk_size)."""
