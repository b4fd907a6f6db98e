"""The client-side optimizers that the engine partitions, by name, with GPT-NeoX's two parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neox.config.schema import OptimConfig
from neox.parallel.lion import Lion

Groups = list[dict[str, Any]]
"""What is decayed, and what is not, in PyTorch's form."""


@dataclass(frozen=True)
class Entry:
    """How one optimizer is built, and the state that it keeps for each parameter."""

    build: Callable[[Groups, OptimConfig], torch.optim.Optimizer]
    kinds: tuple[str, ...]
    """Names of its state tensors of the parameter's shape; they are zero before the first step."""
    is_counting: bool = False
    """Whether it keeps a `step` beside them, a scalar that it corrects the moments by."""


def _adamw(groups: Groups, cfg: OptimConfig) -> torch.optim.Optimizer:
    assert cfg.betas is not None and cfg.eps is not None
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def _adam(groups: Groups, cfg: OptimConfig) -> torch.optim.Optimizer:
    assert cfg.betas is not None and cfg.eps is not None
    return torch.optim.Adam(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def _lion(groups: Groups, cfg: OptimConfig) -> torch.optim.Optimizer:
    assert cfg.betas is not None
    return Lion(groups, lr=cfg.lr, betas=cfg.betas)


def _sgd(groups: Groups, cfg: OptimConfig) -> torch.optim.Optimizer:
    assert cfg.momentum is not None and cfg.nesterov is not None
    return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=True)


MOMENTS = ("exp_avg", "exp_avg_sq")
BUILDERS: dict[str, Entry] = {
    "adamw": Entry(_adamw, MOMENTS, is_counting=True),
    "adam": Entry(_adam, MOMENTS, is_counting=True),
    "lion": Entry(_lion, ("exp_avg",)),
    "sgd": Entry(_sgd, ("momentum_buffer",)),
}
"""By the value of optim.name; `neox/config/optimizers.py` says which keys each takes."""


def is_decayed(name: str) -> bool:
    """Whether weight decay acts on the tensor with this logical name: all but norms and biases do."""
    return not name.endswith((".bias", "norm.weight"))


def build_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], cfg: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of a resolved section over named parameters; its learning rate is set anew for every step."""
    groups: Groups = [
        {"params": [], "weight_decay": cfg.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in parameters:
        groups[0 if is_decayed(name) else 1]["params"].append(parameter)
    return BUILDERS[cfg.name].build(groups, cfg)


def state_kinds(cfg: OptimConfig) -> tuple[str, ...]:
    """Names of the optimizer's state tensors of each parameter's shape; plain SGD has none."""
    return () if cfg.momentum == 0 else BUILDERS[cfg.name].kinds


def create_state(optimizer: torch.optim.Optimizer, cfg: OptimConfig) -> None:
    """Gives every parameter the zero state that the first step would, so that it exists from the start."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = {kind: torch.zeros_like(parameter, requires_grad=False) for kind in state_kinds(cfg)}
            if BUILDERS[cfg.name].is_counting:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            optimizer.state[parameter] = state


def step_counters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The step counter of every parameter, as the scalar tensors that it counts in; none where it does not count."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [optimizer.state[parameter]["step"] for parameter in parameters if "step" in optimizer.state[parameter]]
