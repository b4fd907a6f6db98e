"""The gradient noise scale: the batch size above which larger batches hardly make better steps.

McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, appendix A.1: B = tr(Σ) / |G|², from the norms of gradients of
two batch sizes. As in GPT-NeoX, the small batch is that of a step and the large one that of several steps in a row,
whose gradients are summed where the optimizer's state is; so it is the same at every layout and ZeRO stage.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from neox.parallel.engine import Engine, StepResult
from neox.parallel.pieces import Piece
from neox.train.norms import square

BETA = 0.99
"""Of the moving averages of both parts of the quotient, per estimate, as in GPT-NeoX."""


class NoiseScale:
    """Estimates from windows of `num_steps` steps, the first of them from step 1 on.

    The averages are part of a checkpoint, the sum of the gradients is not: a window that is resumed in its midst is
    left out. So is one with a skipped step, or in which the shape of the batch changes.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._averages = {"gradient_variance": 0.0, "gradient_square": 0.0}
        self._num_estimates = 0
        self._shape: tuple[int, int] | None = None
        self._leave_out()

    def needs(self, step: int) -> bool:
        """Whether `see` is to be given the gradient of `step`, which is the next."""
        if (step - 1) % self._num_steps == 0:
            self._leave_out()
            self._is_whole, self._shape = True, None
        return self._is_whole

    def see(self, piece: Piece) -> None:
        """Takes in a piece, as `Engine.train_step` gives it."""
        key = piece.name, piece.start
        if key in self._sums:
            self._sums[key].add_(piece.tensor)
        else:
            self._sums[key] = piece.tensor.clone()

    def update(self, engine: Engine, step: int, shape: tuple[int, int], result: StepResult) -> dict[str, float] | None:
        """After `step` over a batch of `shape` (samples, tokens of each), on every rank; what is known after a window.

        noise_scale: in samples. Its parts, gradient_variance: trace of the covariance of one sample's gradient;
        gradient_square: squared norm of the gradient of all data; all averaged over the windows so far.
        """
        if result.is_skipped or not math.isfinite(result.grad_norm) or self._shape not in (None, shape):
            self._leave_out()
        if not self._is_whole:
            return None
        self._shape = shape
        self._small_square += result.grad_norm**2 / self._num_steps
        if step % self._num_steps:
            return None
        (total,) = engine.sum_over_ranks([sum(square(tensor) for tensor in self._sums.values())])
        small, large = shape[0], shape[0] * self._num_steps
        large_square = total / self._num_steps**2
        return self._average(
            gradient_variance=(self._small_square - large_square) / (1 / small - 1 / large),
            gradient_square=(large * large_square - small * self._small_square) / (large - small),
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON-able."""
        return {"num_estimates": self._num_estimates, **self._averages}

    def restore(self, state: dict[str, Any] | None) -> None:
        """The reverse of `state`, None being that of a run which had no estimates; the window at hand is left out."""
        self._num_estimates = state["num_estimates"] if state else 0
        self._averages = {name: state[name] if state else 0.0 for name in self._averages}
        self._leave_out()

    def _average(self, **estimates: float) -> dict[str, float]:
        self._num_estimates += 1
        for name, value in estimates.items():
            self._averages[name] = BETA * self._averages[name] + (1 - BETA) * value
        share = 1 - BETA**self._num_estimates  # of the weights that are not still on the zero it began with
        variance, signal = (average / share for average in self._averages.values())
        scale = variance / signal if signal > 0 else math.inf  # too noisy to tell yet
        return {"noise_scale": scale, "gradient_variance": variance, "gradient_square": signal}

    def _leave_out(self) -> None:
        self._is_whole, self._small_square = False, 0.0
        self._sums: dict[tuple[str, int], Tensor] = {}
