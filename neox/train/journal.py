"""What is written down of a run: its records by the first rank, traces by every rank, and lines for a person."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from neox.config.schema import Config
from neox.parallel.engine import Engine, StepResult
from neox.train.directory import RunDirectory
from neox.train.metrics import Metrics
from neox.train.norms import StateNorms
from neox.train.profile import Profile
from neox.train.throughput import Throughput, peak_tflops
from neox.train.tracker import Tracker


class Journal:
    """All that the `log` section asks for; every rank has one and calls it, and the first rank's writes the records."""

    def __init__(self, cfg: Config, run: RunDirectory, engine: Engine) -> None:
        """Raises UserError for what cannot be recorded here."""
        self._cfg, self._run, self._engine = cfg, run, engine
        self._metrics: Metrics | None = None
        self._tracker: Tracker | None = None
        self._profile = Profile(cfg.log, run.folder / "profile", engine.rank)
        self._throughput = Throughput(cfg, engine.world_size, peak_tflops(cfg))
        self._state_norms = StateNorms(cfg)

    def open(self, step: int, is_rewind: bool = False) -> None:
        """Opens the records after `step`; the first rank only. Raises UserError where the tracker cannot begin."""
        log = self._cfg.log
        if log.wandb != "off" and self._tracker is None:
            self._tracker = Tracker(self._run, self._cfg)
        self._metrics = Metrics(
            self._run, step, self._cfg.train.steps, log.interval, log.tensorboard, is_rewind, self._tracker
        )

    def tracing(self, step: int) -> AbstractContextManager[None]:
        """Around optimizer step `step`, which is traced if that is asked for."""
        return self._profile.step(step)

    def record_step(
        self, counters: dict[str, int], result: StepResult, lr: float, step_time_s: float, size: int, length: int
    ) -> None:
        """A step of `size` samples of `length` tokens; `counters` are those after it, `step` among them."""
        if self._metrics is None:
            return
        record: dict[str, Any] = {
            **counters,
            "loss": result.loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "step_time_s": round(step_time_s, 6),
            **self._throughput.rates(size, length, step_time_s),
        }
        self._metrics.record_step(record | {"skipped": True} if result.is_skipped else record)

    def record_event(self, event: dict[str, Any]) -> None:
        """What was done about a bad step."""
        if self._metrics is not None:
            self._metrics.record_event(event)

    def record_validation(self, step: int, loss: float) -> None:
        """The validation loss after `step`."""
        if self._metrics is not None:
            self._metrics.record_validation(step, loss)

    def measure_if_due(self, step: int) -> None:
        """The norms of weights and optimizer state, at every state_norms_interval-th step."""
        interval = self._cfg.log.state_norms_interval
        if interval and step % interval == 0:
            norms = self._state_norms.measure(self._engine)
            if self._metrics is not None:
                self._metrics.record_norms(step, norms)

    def flush(self) -> None:
        """Leaves what was recorded so far on disk."""
        if self._metrics is not None:
            self._metrics.flush()

    def reopen(self, step: int) -> None:
        """After a rewind: the records go on after `step`, and those of the steps that were undone stay."""
        if self._metrics is not None:
            self._metrics.close()
            self.open(step, is_rewind=True)

    def close(self) -> None:
        """Ends all of it."""
        self._profile.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._tracker is not None:
            self._tracker.close()

    def say(self, message: str) -> None:
        """A line on the first rank's console."""
        if self._engine.rank == 0:
            print(message, flush=True)
