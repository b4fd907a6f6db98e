"""What to do about a step whose loss is not finite or far above the recent ones; every rank decides alike."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from neox.config.schema import TrainConfig
from neox.parallel.engine import StepResult

Action = Literal["log", "skip", "rewind", "stop"]


@dataclass(frozen=True)
class Anomaly:
    """A bad step, and what is to be done."""

    action: Action
    reason: str


class Watch:
    """Recent losses and counts of bad steps.

    It sees what all ranks see alike, so it answers alike on all of them; its state is part of the checkpoint, so a
    resumed run answers as the uninterrupted one did.
    """

    def __init__(self, cfg: TrainConfig) -> None:
        self._cfg = cfg
        self._losses: deque[float] = deque(maxlen=cfg.spike_window)
        self._num_skipped_in_a_row = 0
        self.num_skipped = 0
        """Steps that left the weights as they were."""
        self.num_rewinds = 0

    @property
    def refuses_spikes(self) -> bool:
        """Whether a step is to be asked for before it changes the weights."""
        return self._cfg.on_spike == "skip"

    @property
    def may_rewind(self) -> bool:
        """Whether a step may make the run go back to its latest checkpoint."""
        return "rewind" in (self._cfg.on_nonfinite, self._cfg.on_spike)

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is more than spike_sigma standard deviations above the mean of the losses remembered.

        Never before half of spike_window steps: the rule of OLMo-core's SkipStepOptimizer.
        """
        if len(self._losses) < max(2, self._cfg.spike_window // 2) or not math.isfinite(loss):
            return False
        mean, deviation = statistics.fmean(self._losses), statistics.stdev(self._losses)
        return loss > mean + self._cfg.spike_sigma * deviation

    def judge(self, result: StepResult) -> Anomaly | None:
        """What is wrong with a step, if anything; takes it into account."""
        self.num_skipped += result.is_skipped
        self._num_skipped_in_a_row = self._num_skipped_in_a_row + 1 if result.is_skipped else 0
        anomaly = self._find(result)
        if anomaly is None and not result.is_skipped:
            self._losses.append(result.loss)
        if anomaly is None or anomaly.action in ("log", "skip"):
            limit = self._cfg.max_skipped
            if self._num_skipped_in_a_row >= limit:
                return Anomaly("stop", f"{limit} steps in a row were skipped (train.max_skipped)")
        elif anomaly.action == "rewind" and self.num_rewinds >= self._cfg.max_rewinds:
            return Anomaly("stop", f"{anomaly.reason}, after {self.num_rewinds} rewinds (train.max_rewinds)")
        return anomaly

    def _find(self, result: StepResult) -> Anomaly | None:
        if not math.isfinite(result.loss):
            return Anomaly(self._cfg.on_nonfinite, f"the loss is {result.loss}")
        if self.is_spike(result.loss):
            mean, deviation = statistics.fmean(self._losses), statistics.stdev(self._losses)
            return Anomaly(
                self._cfg.on_spike,
                f"the loss {result.loss:.4f} is more than {self._cfg.spike_sigma:g} standard deviations of "
                f"{deviation:.4f} above the mean {mean:.4f} of {len(self._losses)} steps",
            )
        if result.is_skipped and self._cfg.precision != "fp16":  # there it is how the loss scale is found
            return Anomaly(self._cfg.on_nonfinite, "the gradients are not finite")
        return None

    def state(self) -> dict[str, Any]:
        """JSON-able; `restore` takes it."""
        return {
            "losses": list(self._losses),
            "skipped_in_a_row": self._num_skipped_in_a_row,
            "skipped": self.num_skipped,
            "rewinds": self.num_rewinds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`; another spike_window keeps what fits."""
        self._losses = deque(state["losses"], maxlen=self._cfg.spike_window)
        self._num_skipped_in_a_row = state["skipped_in_a_row"]
        self.num_skipped, self.num_rewinds = state["skipped"], state["rewinds"]
