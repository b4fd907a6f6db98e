"""A step's loss, asked about before the optimizer acts on it: what is refused goes DeepSpeed's own way of overflows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from neox.parallel.settings import SCALER_STATE


@contextmanager
def refusing(engine: Any, is_bad: Callable[[float], bool]) -> Iterator[None]:
    """While it lasts, a step whose loss `is_bad` drops its gradients and changes nothing else, not even a loss scale.

    `engine`: DeepSpeed's pipeline engine with a ZeRO-1 optimizer; the one for bf16 has no overflow check to hook into.
    `is_bad` must answer alike on every rank.
    """
    zero = engine.optimizer
    has_overflow, checks_overflow = zero.has_overflow, zero.check_grad_overflow
    scaler_state: dict[str, Any] = {}

    def refuse(*arguments: Any, **options: Any) -> bool:
        if is_bad(float(engine._aggregate_total_loss())):
            scaler = zero.loss_scaler
            scaler_state.update({name: getattr(scaler, name) for name in SCALER_STATE if hasattr(scaler, name)})
            return True
        return checks_overflow and bool(has_overflow(*arguments, **options))

    zero.has_overflow, zero.check_grad_overflow = refuse, True
    try:
        yield
    finally:
        zero.has_overflow, zero.check_grad_overflow = has_overflow, checks_overflow
        for name, value in scaler_state.items():
            setattr(zero.loss_scaler, name, value)
