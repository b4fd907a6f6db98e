"""What a run says about itself: metrics.jsonl, TensorBoard and a progress line; the first rank only."""

from __future__ import annotations

import datetime
import json
import math
import os
import statistics
import sys
from collections import deque
from pathlib import Path
from typing import Any

from neox.data.durable import replacing
from neox.train.directory import RunDirectory
from neox.train.tracker import Tracker

RECENT_STEPS = 50
"""Steps whose median time and rates the progress line shows."""
NOT_DRAWN = ("step", "samples", "tokens", "skipped")
"""Keys of a step's record that are no curve in TensorBoard."""


class Metrics:
    """Writes every record at once, so that a killed run loses at most a half-written line."""

    def __init__(
        self,
        run: RunDirectory,
        first_step: int,
        num_steps: int,
        interval: int,
        tensorboard: bool,
        is_rewind: bool = False,
        tracker: Tracker | None = None,
    ) -> None:
        """Goes on after step `first_step`: what the files say of later steps is dropped.

        Args:
            num_steps: last step of the run. interval: steps between progress lines.
            is_rewind: the run itself came back here, so that earlier rewinds to this step stand.
            tracker: closed by whoever made it.
        """
        drop_after(run, first_step, keep_rewinds=is_rewind)
        self._path = run.metrics
        self._file = run.metrics.open("a", encoding="utf-8")
        self._tensorboard = _writer(run.tensorboard, first_step) if tensorboard else None
        self._tracker = tracker
        self._first_step, self._num_steps, self._interval = first_step, num_steps, interval
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_STEPS)

    def record_step(self, record: dict[str, Any]) -> None:
        """One optimizer step: step, samples, tokens, loss, lr, grad_norm, step_time_s, and `Throughput.rates`."""
        self._write(record)
        step = record["step"]
        self._recent.append(record)
        self._draw({f"train/{key}": value for key, value in record.items() if key not in NOT_DRAWN}, step)
        if step % self._interval == 0 or step in (self._first_step + 1, self._num_steps):
            print(self._progress(record), flush=True)

    def record_validation(self, step: int, valid_loss: float) -> None:
        """One validation, after `step`."""
        self._write({"step": step, "valid_loss": valid_loss})
        self._draw({"valid/loss": valid_loss}, step)
        print(f"step {step}/{self._num_steps} | validation loss {valid_loss:.4f}", flush=True)

    def record_norms(self, step: int, norms: dict[str, float], zeros: dict[str, float] | None = None) -> None:
        """Norms of the run's tensors after `step`, by `kind/name`; and shares of their gradients that are zero."""
        self._write({"step": step, "norms": norms, **({"zeros": zeros} if zeros else {})})
        self._draw({f"norm/{name}": norm for name, norm in norms.items()}, step)
        self._draw({f"zeros/{name}": share for name, share in (zeros or {}).items()}, step)

    def record_noise(self, step: int, noise: dict[str, float]) -> None:
        """`NoiseScale.update`'s findings after `step`."""
        self._write({"step": step, **noise})
        self._draw({f"train/{name}": value for name, value in noise.items()}, step)

    def record_event(self, record: dict[str, Any]) -> None:
        """What was done about a bad step: {"step", "event", "reason", ...}; also one line on stderr.

        A rewind's step is the one it went back to; `from_step` is the bad one, and `samples` where the data goes on.
        """
        self._write(record)
        level, step, what = "error" if record["event"] == "stop" else "warning", record["step"], record["event"]
        if what == "rewind":
            step, what = record["from_step"], f"rewind to step {step}, on behind sample {record['samples']}"
        print(f"neox: {level}: step {step}: {what}: {record['reason']}", file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Waits until every record is on the disk."""
        os.fsync(self._file.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self.flush()
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps({key: _finite(value) for key, value in record.items()}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _draw(self, values: dict[str, float], step: int) -> None:
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.draw(values, step)

    def _progress(self, record: dict[str, Any]) -> str:
        remaining_s = self._typical("step_time_s") * (self._num_steps - record["step"])
        parts = [
            f"step {record['step']}/{self._num_steps}",
            f"loss {record['loss']:.4f}",
            f"lr {record['lr']:.2e}",
            f"grad norm {record['grad_norm']:.2f}",
            f"{self._typical('tokens_per_s'):,.0f} tokens/s",
            *([f"MFU {self._typical('mfu'):.1%}"] if "mfu" in record else []),
            f"ETA {datetime.timedelta(seconds=round(remaining_s))}",
        ]
        return " | ".join(parts)

    def _typical(self, key: str) -> float:
        """Median over the recent steps: one slow step does not move it."""
        return statistics.median(record[key] for record in self._recent)


def drop_after(run: RunDirectory, step: int, keep_rewinds: bool = False) -> None:
    """Leaves in metrics.jsonl only whole lines of steps up to `step`; replaces the file at once or not at all.

    A rewind to `step` happened after its checkpoint was made, so a process that starts from there comes to it again.
    """
    if not run.metrics.is_file():
        return
    kept = [
        json.dumps(record) + "\n"
        for record in run.records()
        if record["step"] < step or (record["step"] == step and (keep_rewinds or record.get("event") != "rewind"))
    ]
    with replacing(run.metrics) as (temporary,):
        temporary.write_text("".join(kept), encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _writer(folder: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to load

    # Readers drop what earlier files say of steps from purge_step on.
    return SummaryWriter(str(folder), purge_step=first_step + 1 if first_step or folder.exists() else None)
