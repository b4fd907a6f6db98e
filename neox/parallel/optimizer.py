"""The client-side optimizers that the engine partitions, by name, with GPT-NeoX's groups of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from neox.config.schema import Config, OptimConfig
from neox.parallel.adafactor import Adafactor
from neox.parallel.adamw8bit import SIGNED, AdamW8bit, Quantized
from neox.parallel.fragments import Ranks, fragments
from neox.parallel.lion import Lion
from neox.parallel.muon import Muon, is_matrix
from neox.parallel.pieces import Piece

Groups = list[dict[str, Any]]
"""In PyTorch's form; `names` are those of the parameters."""

Build = Callable[[Groups, OptimConfig], torch.optim.Optimizer]


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


def _muon(groups: Groups, cfg: OptimConfig) -> torch.optim.Optimizer:
    keys = {"momentum": cfg.momentum, "nesterov": cfg.nesterov, "betas": cfg.betas, "eps": cfg.eps}
    assert cfg.muon_scale is not None
    return Muon(groups, lr=cfg.lr, scale=cfg.muon_scale, **keys)


def _adafactor(groups: Groups, cfg: OptimConfig) -> torch.optim.Optimizer:
    return Adafactor(groups, lr=cfg.lr)


def _adamw8bit(groups: Groups, cfg: OptimConfig) -> torch.optim.Optimizer:
    assert cfg.betas is not None and cfg.eps is not None
    return AdamW8bit(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps)


BUILDERS: dict[str, Build] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "adam": _adam,
    "lion": _lion,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "muon": _muon,
}
"""By the value of optim.name; `neox/config/optimizers.py` says which keys each takes."""

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS: dict[str, tuple[str, ...]] = {
    "adamw": MOMENTS,
    "adamw8bit": MOMENTS,
    "adam": MOMENTS,
    "lion": MOMENTS[:1],
    "sgd": ("momentum_buffer",),
    "adafactor": (),
}
"""State tensors of the parameter's shape; zero before the first step."""
COUNTING = ("adamw", "adamw8bit", "adam", "adafactor", "muon")
"""Optimizers that keep a `step`, a scalar for each parameter that counts."""


def is_decayed(name: str) -> bool:
    """Whether weight decay acts on the tensor with this logical name: all but norms and biases do."""
    return not name.endswith((".bias", "norm.weight"))


def state_kinds(name: str, cfg: OptimConfig) -> tuple[str, ...]:
    """Names of the state tensors of the shape of the parameter `name`; plain SGD has none."""
    if cfg.name == "muon":
        return ("momentum_buffer",) if is_matrix(name) else MOMENTS
    return () if cfg.name == "sgd" and cfg.momentum == 0 else KINDS[cfg.name]


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], cfg: OptimConfig, max_numel: float = math.inf
) -> torch.optim.Optimizer:
    """The optimizer of a resolved section over named parameters; its learning rate is set anew for every step.

    Two groups: what is decayed, and the rest; Muon's are its matrices, and the rest, of which it decays a part; each in
    parts of `max_numel`. A group's rate is its `rate` times the learning rate.
    """
    belongs = is_matrix if cfg.name == "muon" else is_decayed
    groups: Groups = [
        {"params": [], "names": [], "weight_decay": cfg.weight_decay, "is_matrix": True, "rate": 1.0},
        {"params": [], "names": [], "weight_decay": 0.0, "is_matrix": False, "rate": 1.0},
    ]
    if cfg.name == "muon":
        groups[0]["rate"] = 1.0 if cfg.matrix_lr is None else cfg.matrix_lr / cfg.lr
        groups[1]["weight_decay"] = cfg.weight_decay
    for name, parameter in parameters:
        group = groups[0 if belongs(name) else 1]
        group["params"].append(parameter)
        group["names"].append(name)
    groups = [part for group in groups for part in split(group, max_numel)]
    return BUILDERS[cfg.name](groups, cfg)


def split(group: dict[str, Any], max_numel: float) -> Groups:
    """A group as several, in its order, of at most `max_numel` numbers together or of one tensor that has more."""
    parts: Groups = []
    room = 0.0
    for name, parameter in zip(group["names"], group["params"], strict=True):
        room -= parameter.numel()
        if room < 0 or not parts:  # ZeRO-3 leaves no numbers
            parts.append({**group, "params": [], "names": []})
            room = max_numel - parameter.numel()
        parts[-1]["params"].append(parameter)
        parts[-1]["names"].append(name)
    return parts or [group]


def create_state(optimizer: torch.optim.Optimizer, cfg: OptimConfig) -> None:
    """Gives every parameter the zero state that the first step would, so that it exists from the start."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kinds = state_kinds(group["names"][0], cfg)
            is_quantized = cfg.name == "adamw8bit" and group["is_matrix"]
            optimizer.state[parameter] = {
                kind: Quantized(parameter.numel(), kind in SIGNED, parameter.device)
                if is_quantized
                else torch.zeros_like(parameter, requires_grad=False)
                for kind in kinds
            }
            if cfg.name in COUNTING:
                optimizer.state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)


def place(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, nn.Parameter]], ranks: Ranks, cfg: Config
) -> None:
    """Tells an optimizer that looks at whole tensors where they lie, once they are dealt to flat partitions."""
    if isinstance(optimizer, Adafactor):
        optimizer.place(fragments(parameters, ranks), ranks)
    if isinstance(optimizer, Muon):
        found = fragments(parameters, ranks)
        dtype = torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32
        optimizer.place(found, ranks, {name for name in found if is_decayed(name)}, dtype)


def step_counters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The step counter of every parameter, as the scalar tensors that it counts in; none where it does not count."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [optimizer.state[parameter]["step"] for parameter in parameters if "step" in optimizer.state[parameter]]


def replicated_pieces(optimizer: torch.optim.Optimizer) -> list[Piece]:
    """State that every data-parallel rank keeps whole: Adafactor's factors."""
    return list(optimizer.pieces()) if isinstance(optimizer, Adafactor) else []
