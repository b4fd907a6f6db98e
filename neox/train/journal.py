"""What is written down of a run: its records by the first rank, traces by every rank, and lines for a person."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from neox.config.schema import Config
from neox.parallel.engine import Engine, StepResult
from neox.parallel.pieces import Piece
from neox.train.directory import RunDirectory
from neox.train.metrics import Metrics
from neox.train.noise import NoiseScale
from neox.train.norms import GradientNorms, StateNorms
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
        self._state_norms, self._gradient_norms = StateNorms(cfg), GradientNorms(cfg)
        self._noise = NoiseScale(cfg.log.noise_scale_steps) if cfg.log.noise_scale_steps else None

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

    def gradient_observer(self, step: int) -> Callable[[Piece], None] | None:
        """What `Engine.train_step` is to show the gradient of `step`, the next, to; None where nothing asks for it."""
        observers = []
        if _is_due(step, self._cfg.log.gradient_norms_interval):
            observers.append(self._gradient_norms.see)
        if self._noise is not None and self._noise.needs(step):
            observers.append(self._noise.see)

        def see(piece: Piece) -> None:
            for observer in observers:
                observer(piece)

        return see if observers else None

    def record_gradients(self, step: int, shape: tuple[int, int], result: StepResult) -> None:
        """What was asked for of the gradients of the step just made; `shape` as of `NoiseScale.update`."""
        if _is_due(step, self._cfg.log.gradient_norms_interval) and not result.is_skipped:
            norms, zeros = self._gradient_norms.measure(self._engine)
            if self._metrics is not None:
                self._metrics.record_norms(step, norms, zeros)
        noise = self._noise and self._noise.update(self._engine, step, shape, result)
        if noise and self._metrics is not None:
            self._metrics.record_noise(step, noise)

    def state(self) -> dict[str, Any]:
        """What goes on from a checkpoint, JSON-able."""
        return {"noise": self._noise.state()} if self._noise is not None else {}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`, or what another configuration had of it."""
        if self._noise is not None:
            self._noise.restore(state.get("noise"))

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
        if _is_due(step, self._cfg.log.state_norms_interval):
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


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
