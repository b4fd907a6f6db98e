"""One line per allocation in a run's `segments.jsonl`: what held it, when, which steps, and why it ended."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from jobs import warning
from jobs.failure import tail
from jobs.scheduler.contract import Scheduler

_STEP = re.compile(r'\{"step": (\d+),')


def now() -> str:
    """UTC time to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def cause(code: int, signals: list[str]) -> str:
    """Why an allocation ended, for people."""
    if code == 0:
        return "finished"
    if code == warning.SAVED:
        return f"saved after {signals[0]}" if signals else "saved"
    return f"killed by signal {code - 128}" if code > 128 else f"failed with exit code {code}"


def steps(run_dir: Path) -> tuple[int | None, int | None]:
    """First and last step of the training that just ended here; None where it did not come to that.

    The trainer leaves its first step's number in segment.json, which is taken away, and each step in metrics.jsonl.
    """
    try:
        first = int(json.loads((run_dir / "segment.json").read_text())["first_step"])
        (run_dir / "segment.json").unlink()
    except (OSError, ValueError, KeyError):
        return None, None
    numbers = [int(match[1]) for line in tail(run_dir / "metrics.jsonl") if (match := _STEP.match(line))]
    return (first, numbers[-1]) if numbers and numbers[-1] >= first else (None, None)


def record(run_dir: Path, scheduler: Scheduler, environ: Mapping[str, str], start: str, code: int, why: str) -> None:
    """Appends one line; a run directory that is not there yet is made."""
    words = {ours: environ.get(theirs) for ours, theirs in scheduler.environment.items()}
    first_step, last_step = steps(run_dir)
    line = {
        "job_id": words.get("job_id"),
        "restart": int(environ.get(warning.RESTART_VARIABLE, 0)),
        "nodes": words.get("nodes") or os.uname().nodename,
        "start": start,
        "end": now(),
        "first_step": first_step,
        "last_step": last_step,
        "exit_code": code,
        "cause": why,
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "segments.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
