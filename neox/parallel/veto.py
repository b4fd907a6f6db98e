"""A step's loss, asked about before the optimizer acts on it: what is refused goes DeepSpeed's own way of overflows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neox.parallel.settings import SCALER_STATE


class Veto:
    """Hooked into DeepSpeed's overflow check: a refused step drops its gradients and changes nothing else."""

    def __init__(self, engine: Any) -> None:
        """`engine`: DeepSpeed's pipeline engine with a ZeRO-1 optimizer."""
        self._engine, self._zero = engine, engine.optimizer
        self._has_overflow = self._zero.has_overflow
        self._checks_overflow = self._zero.check_grad_overflow
        self._is_bad: Callable[[float], bool] | None = None
        self._scaler_state: dict[str, Any] = {}
        self._zero.has_overflow = self._refuse

    def arm(self, is_bad: Callable[[float], bool] | None) -> None:
        """For the next step: `is_bad(loss)`, equal on every rank, refuses it; None refuses nothing."""
        self._is_bad = is_bad
        self._zero.check_grad_overflow = self._checks_overflow or is_bad is not None
        self._scaler_state = {}

    def restore_scale(self) -> None:
        """After the step: a loss scale that was halved for a refused step is as before."""
        for name, value in self._scaler_state.items():
            setattr(self._zero.loss_scaler, name, value)

    def _refuse(self, *arguments: Any, **options: Any) -> bool:
        if self._is_bad is not None and self._is_bad(float(self._engine._aggregate_total_loss())):
            scaler = self._zero.loss_scaler
            self._scaler_state = {name: getattr(scaler, name) for name in SCALER_STATE if hasattr(scaler, name)}
            return True
        return self._checks_overflow and bool(self._has_overflow(*arguments, **options))
