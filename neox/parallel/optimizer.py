"""The client-side optimizer that the engine partitions: AdamW with GPT-NeoX's two parameter groups."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from neox.config.schema import OptimConfig


def is_decayed(name: str) -> bool:
    """Whether weight decay acts on the tensor with this logical name: all but norms and biases do."""
    return not name.endswith((".bias", "norm.weight"))


def build_adamw(parameters: Iterable[tuple[str, nn.Parameter]], cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW over named parameters; its learning rate is set anew for every step."""
    groups: list[dict[str, object]] = [
        {"params": [], "weight_decay": cfg.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in parameters:
        chosen = groups[0 if is_decayed(name) else 1]["params"]
        assert isinstance(chosen, list)
        chosen.append(parameter)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def create_moments(optimizer: torch.optim.AdamW) -> None:
    """Gives every parameter the zero moments that the first step would, so that state exists from the start."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def step_counters(optimizer: torch.optim.AdamW) -> list[Tensor]:
    """Adam's step counter of every parameter, as the scalar tensors that it counts in."""
    return [optimizer.state[parameter]["step"] for group in optimizer.param_groups for parameter in group["params"]]
