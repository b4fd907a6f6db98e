"""The training loop: step, validate, save, stop; `neox.train.run` begins and ends it."""

from __future__ import annotations

import time
from typing import Any

from neox.checkpoint.interval import Passing, agreed_mtbf_s
from neox.checkpoint.mirror import Mirror, mirror_of
from neox.checkpoint.resume import newest_intact, verified
from neox.checkpoint.saver import Saver
from neox.checkpoint.start import starting_point
from neox.config.derive import checkpoint_steps
from neox.config.load import config_hash, to_dict
from neox.config.schema import Config
from neox.config.warmup import batch_size_at, length_at
from neox.parallel.engine import Engine
from neox.train.anomaly import Action, Anomaly, Watch
from neox.train.determinism import random_state, restore_random_state
from neox.train.directory import RunDirectory, code_version
from neox.train.inputs import Inputs
from neox.train.journal import Journal
from neox.train.neox_schedule import neox_learning_rate
from neox.train.schedule import learning_rate
from neox.train.stop import StopRequest
from neox.train.watchdog import Watchdog

FINISHED, FAILED, RUN_AGAIN = 0, 1, 85
EARLY_WAIT_S = 30.0
"""Seconds that a run which was asked to stop waits for copies of its checkpoints, of the minutes it is given."""


class Loop:
    """A run between two step boundaries: counters, and what a step, a validation and a save do."""

    def __init__(self, cfg: Config, run: RunDirectory, engine: Engine, inputs: Inputs) -> None:
        self.cfg, self.run, self.engine, self.inputs = cfg, run, engine, inputs
        self.step = 0
        self.samples = 0
        self.tokens = 0
        self.saved_step: int | None = None
        self.journal = Journal(cfg, run, engine)
        self.watch = Watch(cfg.train)
        self.watchdog = Watchdog(run.folder / "logs", engine.rank, cfg.train.step_timeout_s)
        self.save_steps = set(checkpoint_steps(cfg))
        self.mirror = Mirror(
            run.store, mirror_of(cfg.checkpoint, run.folder) if engine.rank == 0 else None, cfg.checkpoint
        )
        self.saver = Saver(run.store, engine, cfg.checkpoint, self.journal.say, self.mirror.wake)
        mtbf_s = agreed_mtbf_s(engine)
        # When they are made is up to the clock: what a rewind goes back to must not be.
        self.passing = Passing(cfg.checkpoint, None if self.watch.may_rewind else mtbf_s)

    def resume(self) -> dict[str, Any] | None:
        """Takes over, and returns, the state of the newest checkpoint that is intact; None: the run begins.

        It begins with the weights of checkpoint.init_from, if that is given.

        Raises:
            UserError: the checkpoint does not fit the model, or no checkpoint is intact.
        """
        reader = newest_intact(self.run.store, self.engine, self.journal.say)
        if reader is None:
            self._begin()
            return None
        state: dict[str, Any] = reader.manifest.state
        self.engine.load_pieces(reader)
        self.engine.load_optimizer_scalars(state["optimizer"])
        restore_random_state(state["rng"])
        self.watch.restore(state["watch"])
        self.journal.restore(state)
        self.step, self.samples, self.saved_step = state["step"], state["samples"], state["step"]
        self.saver.passing = self.run.store.passing_steps() if self.engine.rank == 0 else []
        # Absent: saved by a version that had no warm-up of either.
        self.tokens = state.get("tokens", self.samples * self.cfg.model.seq_length)
        self.journal.say(f"going on from {reader.directory}")
        return state

    def _begin(self) -> None:
        start = starting_point(self.cfg)
        if start is None:
            return
        path, notices = start
        self.engine.load_pieces(verified(path, self.engine), weights_only=True)
        for line in (f"starting from the weights of {path}", *notices):
            self.journal.say(line)

    def run_steps(self, stop: StopRequest) -> int:
        """Steps until the last or a reason to stop, and leaves the state saved; returns the exit code."""
        self.saver.reserve(self.engine.pieces())
        if self.step == 0 and 0 in self.save_steps and self.saved_step is None:
            self.save()
        while self.step < self.cfg.train.steps:
            self.saver.poll()
            if self.engine.any_rank(stop.reason is not None or self.saver.is_overtaken()):
                return self._end_early(stop.reason or "another rank was asked to stop")
            with self.journal.tracing(self.step + 1):
                anomaly = self.train_step()
            action = self.respond(anomaly) if anomaly else None
            if action == "stop":
                self.saver.wait()
                self.journal.close()
                self.mirror.finish(EARLY_WAIT_S)
                return FAILED
            if action != "rewind":
                self.journal.measure_if_due(self.step)
                self.validate_if_due()
                self.save_if_due()
        self.saver.wait()
        self.journal.close()
        if self.engine.rank == 0:
            self.run.write_summary()
        self.journal.say(f"finished {self.step} steps; {self.run.summary}")
        return FINISHED

    def train_step(self) -> Anomaly | None:
        """One optimizer step and its record; returns what was wrong with it."""
        begin = time.perf_counter()
        lr = self._learning_rate()
        size, length = batch_size_at(self.cfg.train, self.samples), length_at(self.cfg, self.step + 1)
        num_micro_batches = size // self.inputs.train.micro_step_size
        self.engine.set_shape(num_micro_batches, length)
        reads_data = self.engine.reads_data
        batches = self.inputs.train.step(self.samples, num_micro_batches, length) if reads_data else []
        is_bad = self.watch.is_spike if self.watch.refuses_spikes else None
        with self.watchdog.step(self.step + 1):
            see_gradient = self.journal.gradient_observer(self.step + 1)
            result = self.engine.train_step(iter(batches), lr, is_bad, see_gradient)
        self.step += 1
        self.samples += size
        self.tokens += size * length
        self.journal.record_step(self._counters(), result, lr, time.perf_counter() - begin, size, length)
        self.journal.record_gradients(self.step, (size, length), result)
        return self.watch.judge(result)

    def respond(self, anomaly: Anomaly) -> Action:
        """Does what is to be done about the step just made, and says so in the logs; returns what was done."""
        if anomaly.action == "rewind":
            return self._rewind(anomaly.reason)
        self.journal.record_event({"step": self.step, "event": anomaly.action, "reason": anomaly.reason})
        return anomaly.action

    def _rewind(self, reason: str) -> Action:
        """Takes over the latest checkpoint, but goes on behind the samples that were seen since it."""
        bad_step, samples, tokens, num_rewinds = self.step, self.samples, self.tokens, self.watch.num_rewinds + 1
        self.saver.wait()
        if self.saved_step is None:
            return self.respond(Anomaly("stop", f"{reason}; there is no checkpoint to rewind to"))
        self.resume()
        self.samples, self.tokens, self.watch.num_rewinds = samples, tokens, num_rewinds
        self.journal.reopen(self.step)
        event = {"step": self.step, "event": "rewind", "reason": reason, "from_step": bad_step, "samples": samples}
        self.journal.record_event(event)
        return "rewind"

    def validate_if_due(self) -> None:
        """Validates at every valid_interval-th step and at the last; each time on the part's next samples."""
        interval, num_batches = self.cfg.train.valid_interval, self.cfg.train.valid_batches
        if interval == 0 or (self.step % interval and self.step != self.cfg.train.steps):
            return
        assert self.inputs.valid is not None
        num_before = (self.step - 1) // interval
        start = num_before * num_batches * self.inputs.valid.global_batch_size
        batches = self.inputs.valid_micro_batches(start, num_batches) if self.engine.reads_data else []
        assert self.cfg.train.grad_accum is not None
        loss = self.engine.eval_loss(iter(batches), num_batches * self.cfg.train.grad_accum)
        self.journal.record_validation(self.step, loss)

    def save_if_due(self) -> None:
        """Saves at the recipe's steps, and between them where the failures of the machine make it worth while."""
        if self.step in self.save_steps:
            self.save()
        elif (
            self.passing.is_on
            and not self.saver.is_writing  # one of the recipe's would wait; these need not be
            and self.engine.any_rank(self.engine.rank == 0 and self.passing.is_due(self.saver.times))
        ):
            self.save(is_passing=True)

    def save(self, is_passing: bool = False) -> None:
        """Copies the state after the current step; it is written while training goes on."""
        state = {**self._state(), "is_passing": is_passing}
        self.saver.start(self.step, self.engine.pieces(), state, self.journal.flush, is_passing)
        self.saved_step, self.passing.saved_at = self.step, time.monotonic()

    def _learning_rate(self) -> float:
        num_updates = self.step - self.watch.num_skipped  # as in GPT-NeoX, a step that changes nothing does not count
        if self.cfg.compat == "none":
            return learning_rate(num_updates, self.cfg.optim)
        return neox_learning_rate(num_updates, self.cfg.optim, self.cfg.compat)

    def _end_early(self, reason: str) -> int:
        self.saver.check_not_overtaken()
        # Before the first step there is nothing to lose.
        if self.step > 0 and self.saved_step != self.step:
            self.save()
        self.saver.wait()
        self.journal.close()
        what = f"saved the state after step {self.step}" if self.saved_step is not None else "stopped before step 1"
        self.journal.say(f"{what}: {reason}; run the same command again to go on")
        if not self.mirror.finish(EARLY_WAIT_S):
            self.journal.say(
                f"not all checkpoints are copied to {self.cfg.checkpoint.mirror} yet: the next start does it"
            )
        return RUN_AGAIN

    def _state(self) -> dict[str, Any]:
        return {
            **self._counters(),
            "optimizer": self.engine.optimizer_scalars(),
            "rng": random_state(),
            "watch": self.watch.state(),
            **self.journal.state(),
            "data": self.inputs.fingerprint,
            "config": to_dict(self.cfg),
            "config_sha256": config_hash(self.cfg),
            "code": code_version(),
        }

    def _counters(self) -> dict[str, int]:
        return {"step": self.step, "samples": self.samples, "tokens": self.tokens}
