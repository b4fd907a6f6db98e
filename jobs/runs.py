"""A run directory, read from outside: how far its training is, when it last saved, how its allocations ended."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs.failure import tail
from jobs.restarts import last_save

SUMMARY = "train_summary.json"
"""The trainer writes it last: a run that has it is finished."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML has it: a sweep's status reads a thousand of these files."""
RECENT_STEPS = 100
"""How many of the last steps the rate and the time left are taken from."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands; None for what is not known yet."""

    folder: Path
    is_finished: bool
    step: int | None
    steps: int | None
    loss: float | None
    tokens_per_s: float | None
    mfu: float | None
    """Model FLOPs utilisation, 0 to 1, where the trainer knows the device's peak."""
    eta_s: int | None
    saved_step: int | None
    saved_ago_s: float | None
    segments: int
    """Allocations that have ended."""
    cause: str
    """How the last of them ended."""


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Run directories at or below some folders: those in which a trainer has left its resolved configuration."""
    found = set()
    for folder in folders:
        for path, subfolders, files in os.walk(folder):
            if "config.yaml" in files and {"sources", "checkpoints"} <= set(subfolders):
                found.add(Path(path))
                subfolders.clear()  # its checkpoints are many files
    return sorted(found)


def read_progress(folder: Path) -> Progress:
    """Reads a run directory that may be incomplete, or not be there yet."""
    steps_done = _records(folder / "metrics.jsonl", "loss")[-RECENT_STEPS:]
    ended = _records(folder / "segments.jsonl", "cause", num_bytes=1 << 24)
    last = steps_done[-1] if steps_done else {}
    steps = _num_steps(folder)
    is_finished = (folder / SUMMARY).is_file()
    step_s = _median(steps_done, "step_time_s")
    eta_s = None if is_finished or not steps or step_s is None else round((steps - last["step"]) * step_s)
    saved_step, saved_s = last_save(folder)
    return Progress(
        folder=folder,
        is_finished=is_finished,
        step=last.get("step"),
        steps=steps,
        loss=last.get("loss"),
        tokens_per_s=_median(steps_done, "tokens_per_s"),
        mfu=_median(steps_done, "mfu"),
        eta_s=eta_s,
        saved_step=saved_step,
        saved_ago_s=None if saved_s is None else time.time() - saved_s,
        segments=len(ended),
        cause=ended[-1]["cause"] if ended else "",
    )


def _records(file: Path, key: str, num_bytes: int = 1 << 16) -> list[dict[str, Any]]:
    """The last records that hold `key`; a line that is being written, or that the tail cuts, is passed over."""
    found = []
    for line in tail(file, num_bytes):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and key in record:
            found.append(record)
    return found


def time_to_save_s(folder: Path) -> float | None:
    """How long a trainer of this run needs from a warning to a committed checkpoint, at worst; None if not known yet.

    Twice the last save that reached the disk, for one may just have begun, and two steps, for the same reason.
    """
    try:
        total_s = float(json.loads((folder / "last_save.json").read_text())["total_s"])
    except (OSError, ValueError, KeyError):
        return None
    steps_s = [record["step_time_s"] for record in _records(folder / "metrics.jsonl", "step_time_s")[-RECENT_STEPS:]]
    return 2 * total_s + 2 * max(steps_s, default=0.0)


def _median(records: list[dict[str, Any]], key: str) -> float | None:
    values = [record[key] for record in records if key in record]
    return statistics.median(values) if values else None


def _num_steps(folder: Path) -> int | None:
    try:
        return int(yaml.load((folder / "config.yaml").read_text(), _LOADER)["train"]["steps"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
