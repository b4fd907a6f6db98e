"""The `train` section: length, batch and precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and precision of a run."""

    steps: int = 1000
    """Optimizer steps (GPT-NeoX: train_iters)."""
    global_batch_size: int | None = None
    """Samples per optimizer step = micro_batch_size × grad_accum × dp; any two of the three sizes give the third."""
    micro_batch_size: int | None = None
    """Samples per rank and forward pass."""
    grad_accum: int | None = None
    """Micro-batches per step and rank; under a pipeline, the micro-batches in flight."""
    batch_warmup: tuple[int, int, int] | None = None
    """[start, increment, samples]: the global batch grows from start to global_batch_size by increments, in equal
    shares of that many samples; the micro-batch stays (Megatron-LM: rampup-batch-size)."""
    seq_warmup: Literal["none", "linear", "root", "discrete"] = "none"
    """Curriculum of lengths: a step reads the first tokens of each of its samples, more and more of them
    (`neox/config/warmup.py` has the formulas; GPT-NeoX: curriculum_learning)."""
    seq_warmup_lengths: tuple[int, ...] = ()
    """linear, root: first and last length in tokens; discrete: all of them."""
    seq_warmup_steps: tuple[int, ...] = ()
    """linear, root: the step at which the last length is reached; discrete: the last step of each length but one."""
    seq_warmup_multiple: int = 8
    """linear, root: lengths are multiples of this; 8 suits 16-bit matrix units."""
    seq_warmup_root: float = 2.0
    """root: the degree; 1 is linear."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of weights and activations; masters, gradients' sum and moments stay fp32."""
    attention: Literal["auto", "flash", "sdpa"] = "auto"
    """What computes attention: the flash-attn package, which needs a GPU and 16 bits and has no place for T5 positions
    and attention_dropout, or PyTorch's scaled_dot_product_attention. auto: the first where it can."""
    fp16_initial_scale_power: int = 12
    """fp16 multiplies the loss by a scale that follows the gradients; it starts at 2 to this power."""
    fp16_scale_window: int = 1000
    """Steps without overflow after which the scale doubles."""
    fp16_hysteresis: int = 2
    """Overflows, each a skipped step, after which the scale is halved."""
    fp16_min_scale: float = 1.0
    """The scale is not halved below this."""
    seed: int = 1234
    """Seed of the initial weights and of dropout."""
    valid_interval: int = 100
    """Steps between validations; 0 never validates."""
    valid_batches: int = 10
    """Global batches per validation."""
    on_nonfinite: Literal["skip", "rewind", "stop"] = "skip"
    """Where loss or gradients are not finite, the weights are left alone, and then: skip goes on with the next step;
    rewind goes back to the latest checkpoint and on behind the data seen since; stop ends the run as failed."""
    on_spike: Literal["log", "skip", "rewind", "stop"] = "log"
    """Where the loss is a spike: log only says so; skip leaves the weights alone; rewind and stop as above."""
    spike_sigma: float = 6.0
    """A spike is a loss this many standard deviations above the mean of the last spike_window."""
    spike_window: int = 128
    """Losses that a spike is measured against; at least half of them must be there (OLMo-core's rule and numbers)."""
    max_skipped: int = 50
    """Steps skipped in a row that end the run as failed (GPT-NeoX's limit of overflows)."""
    max_rewinds: int = 3
    """Rewinds in a run before the next one ends it as failed."""
    step_timeout_s: float | None = None
    """A step that takes longer hangs: every rank writes its stacks to logs/stacks_rank_*.txt and ends as failed, so
    that the job goes on from its latest checkpoint. None: 300, or 20 times the median step where that is longer. The
    first step, validation and saving have 12 times as long. 0: never."""
