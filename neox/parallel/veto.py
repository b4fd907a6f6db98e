"""A step's loss, asked about before the optimizer acts on it: what is refused goes DeepSpeed's own way of overflows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from neox.parallel.settings import SCALER_STATE


@contextmanager
def refusing(zero: Any, steps: Any, is_bad: Callable[[float], bool]) -> Iterator[None]:
    """While it lasts, a step whose loss `is_bad` drops its gradients and changes nothing else, not even a loss scale.

    `zero`: DeepSpeed's optimizer. `steps`: what makes the step and knows its loss. `is_bad` must answer alike on every
    rank.
    """
    is_of_bf16 = hasattr(zero, "clear_hp_grads")  # stage 1's, which looks for overflows inside its step
    is_flat = hasattr(zero, "check_grad_overflow")  # stages 1 and 2, which skip the check unless told; 3 has it inside
    method = "step" if is_of_bf16 else "check_overflow" if is_flat else "_overflow_check_and_loss_scale_update"
    usual, is_checked = getattr(zero, method), not is_flat or zero.check_grad_overflow
    scaler_state: dict[str, Any] = {}

    def refuse(*arguments: Any, **options: Any) -> None:
        if is_bad(float(steps._aggregate_total_loss())):
            zero.overflow = True
            if is_of_bf16:
                zero._global_grad_norm = math.inf  # DeepSpeed's engine clears the gradients after every step
            else:
                scaler = zero.loss_scaler
                scaler_state.update({name: getattr(scaler, name) for name in SCALER_STATE if hasattr(scaler, name)})
        elif is_checked:
            usual(*arguments, **options)

    setattr(zero, method, refuse)
    if is_flat:
        zero.check_grad_overflow = True
    try:
        yield
    finally:
        delattr(zero, method)  # the class's comes to light again
        if is_flat:
            zero.check_grad_overflow = is_checked
        for name, value in scaler_state.items():
            setattr(zero.loss_scaler, name, value)
