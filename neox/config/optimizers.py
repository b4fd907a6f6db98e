"""Which keys of `optim` each optimizer takes, their values where none is given, their ranges; sizes of groups."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from neox.config.errors import UserError
from neox.config.schema import Config, OptimConfig
from neox.config.shape import block_norm_parameters, num_kv_copies


@dataclass(frozen=True)
class Rule:
    """What one optimizer is told beside lr, weight_decay and grad_clip, and what it keeps."""

    defaults: dict[str, Any]
    """Keys of `optim` that it takes, each with its value where the user gives none."""
    num_moments: float
    """fp32 numbers that it keeps for each parameter, of the blocks' matrices if they differ from the rest."""


ADAM: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8}
OPTIMIZERS: dict[str, Rule] = {
    "adamw": Rule(ADAM, 2),
    "adamw8bit": Rule(ADAM, 2 * (1 + 4 / 256) / 4),  # a byte each, and an fp32 scale for 256
    "adam": Rule(ADAM, 2),
    "lion": Rule({"betas": (0.9, 0.99)}, 1),
    "sgd": Rule({"momentum": 0.0, "nesterov": False}, 1),
    "adafactor": Rule({}, 0),
    "muon": Rule({"momentum": 0.95, "nesterov": True, "matrix_lr": None, "muon_scale": "match_rms_adamw", **ADAM}, 1),
}
"""By the value of optim.name; `neox/parallel/optimizer.py` builds them."""
OWN_KEYS = tuple(dict.fromkeys(key for rule in OPTIMIZERS.values() for key in rule.defaults))
"""Keys of `optim` that some optimizers do not take."""
WHOLE = ("adafactor", "muon")
"""Optimizers that look at whole tensors."""
GROUP_NUMEL = 1 << 22
"""16 MiB of fp32 gradients, of which there may be a second copy."""
REFUSED = {
    "onebitadam": "DeepSpeed has 1-bit Adam no more, and had it only without ZeRO, which is always on here; use adamw",
}
"""Optimizers that cannot be right here, and the reason."""


def resolve_optimizer(optim: OptimConfig) -> OptimConfig:
    """The section with the optimizer's own keys filled in; those that it does not take stay None.

    Raises:
        UserError: the optimizer is refused, does not take a key that is given, or a value is out of range.
    """
    if optim.name in REFUSED:
        raise UserError(f"optim.name = {optim.name}: {REFUSED[optim.name]}")
    defaults = OPTIMIZERS[optim.name].defaults
    given = {key: getattr(optim, key) for key in OWN_KEYS if getattr(optim, key) is not None}
    for key, value in given.items():
        if key not in defaults:
            own = f"it takes {', '.join(f'optim.{name}' for name in defaults) or 'none of its own'}"
            raise UserError(f"optim.{key} = {value}: optim.name = {optim.name} does not take it; {own}")
    resolved = dataclasses.replace(optim, **{**defaults, **given})
    _check_ranges(resolved)
    return resolved


def _check_ranges(optim: OptimConfig) -> None:
    for name in ("lr", "weight_decay", "grad_clip"):
        if not 0 <= getattr(optim, name) < float("inf"):
            raise UserError(f"optim.{name} = {getattr(optim, name)}: must be at least 0")
    if optim.betas is not None and not all(0 <= beta < 1 for beta in optim.betas):
        raise UserError(f"optim.betas = {list(optim.betas)}: each must be in 0…1, and below 1")
    if optim.eps is not None and not 0 <= optim.eps < float("inf"):
        raise UserError(f"optim.eps = {optim.eps}: must be at least 0")
    if optim.momentum is not None and not 0 <= optim.momentum < 1:
        raise UserError(f"optim.momentum = {optim.momentum}: must be in 0…1, and below 1")
    if optim.matrix_lr is not None and not 0 < min(optim.matrix_lr, optim.lr) <= max(optim.matrix_lr, optim.lr) < float(
        "inf"
    ):
        raise UserError(f"optim.matrix_lr = {optim.matrix_lr}: must be above 0, and so optim.lr, which is {optim.lr}")
    if optim.nesterov and not optim.momentum:
        raise UserError(f"optim.nesterov = true: needs optim.momentum above 0, which is {optim.momentum}")


def check_optimizer(config: Config) -> None:
    """What an optimizer that looks at whole tensors needs of model and layout.

    Raises:
        UserError: the layout cannot give it that.
    """
    name, model, parallel = config.optim.name, config.model, config.parallel
    if name not in WHOLE:
        return
    if parallel.zero_stage == 3 or parallel.offload != "none":
        raise UserError(
            f"optim.name = {name}: puts whole tensors together, for which parallel.zero_stage = {parallel.zero_stage} "
            f"must be 1 or 2 and parallel.offload = {parallel.offload} none; or take optim.name adamw or lion"
        )
    if num_kv_copies(model, parallel.tp) > 1:
        raise UserError(
            f"optim.name = {name}: puts whole tensors together, for which parallel.tp = {parallel.tp} must divide the "
            f"{model.num_kv_heads} heads of model.num_kv_heads; or take optim.name adamw or lion"
        )
    has_rest = model.bias or model.attn_bias or block_norm_parameters(model) > 0
    if name == "muon" and parallel.pp > 2 and not has_rest:
        # DeepSpeed sums the gradients' norm group by group over the stages, so every stage must have both groups.
        raise UserError("optim.name = muon: blocks without norms' weights and biases need parallel.pp of at most 2")


def largest_group(cfg: Config) -> float:
    """How many numbers a group of the optimizer's parameters may have; one tensor may have more.

    Stage 1 lays the fp32 gradients of a group end to end before it steps on them, group by group, and copies nothing of
    a group that is one tensor. Any size is allowed where groups are few for a reason: of several replicas each has a
    part of every one, those of a pipeline's stages must pair up, and some optimizers look at whole tensors.
    """
    parallel = cfg.parallel
    is_copied = cfg.train.precision == "fp32" and parallel.zero_stage == 1 and parallel.offload == "none"
    is_alone = parallel.dp == parallel.pp == 1 and cfg.optim.name not in WHOLE
    return GROUP_NUMEL if is_copied and is_alone else math.inf
