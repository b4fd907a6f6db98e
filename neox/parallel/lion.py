"""Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675, program 1): steps by the sign of a moment."""

from __future__ import annotations

from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """One moment, two decay rates of it: betas[0] for the step that is taken, betas[1] for what is remembered."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; `exp_avg` must be there (`create_state`)."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                moment = self.state[parameter]["exp_avg"]
                direction = moment.mul(beta1).add_(parameter.grad, alpha=1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                moment.mul_(beta2).add_(parameter.grad, alpha=1 - beta2)
