"""The `log` section: what is written down while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LogConfig:
    """What is written down while training."""

    interval: int = 10
    """Steps between progress lines; metrics.jsonl has every step."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    rank_tflops: float | None = None
    """Peak of one rank in 10¹² FLOP/s, for MFU and HFU (GPT-NeoX: peak_theoretical_tflops). None: what `jobs launch`
    says in NEOX_RANK_TFLOPS, from the site's node.rank_tflops at train.precision; without either there is no MFU."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Draw the curves in Weights & Biases too; offline keeps them in wandb/ of the run directory for `wandb sync`."""
    wandb_project: str = "neox"
    """W&B project."""
    wandb_team: str | None = None
    """W&B entity. None: the user's own."""
    wandb_group: str | None = None
    """W&B group."""
    wandb_name: str | None = None
    """Name of the run in W&B (GPT-NeoX: wandb_run_name). None: that of the run directory."""
    wandb_host: str = "https://api.wandb.ai"
    """W&B server."""
    profile_steps: tuple[int, int] | None = None
    """First and last step of which every rank writes a trace to profile/ of the run directory."""
    memory_snapshot: bool = False
    """In these steps keep the history of GPU memory too (GPT-NeoX: memory_profiling)."""
    state_norms_interval: int = 0
    """Steps between records of the L2 norm of each tensor's weight and optimizer state (GPT-NeoX: log_param_norm,
    log_optimizer_states); 0: none."""
    gradient_norms_interval: int = 0
    """Steps between records of the L2 norm of each tensor's gradient before clipping, and of the share of its elements
    that are zero (GPT-NeoX: log_grad_norm, log_grad_pct_zeros); 0: none."""
    noise_scale_steps: int = 0
    """Steps whose gradients, summed, are the large batch from which the gradient noise scale is estimated (McCandlish
    et al. 2018; GPT-NeoX: log_gradient_noise_scale, gradient_noise_scale_n_batches); 0: none. The sum takes 4 bytes a
    parameter, shared out over dp."""
